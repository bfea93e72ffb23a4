-- Amounts are integers: micro-dollars in *_micro, pico-dollars in *_pico. Times (*_at) are microseconds since 1970-01-01T00:00:00Z.
-- Identities are the 16 bytes of a UUID version 7.

CREATE TABLE account (
    id              BLOB    NOT NULL PRIMARY KEY,
    email           TEXT    NOT NULL UNIQUE,
    tier            TEXT,
    status          TEXT    NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended')),
    status_reason   TEXT,
    -- A refund is under way: nothing is granted until it ends.
    is_frozen       INTEGER NOT NULL DEFAULT 0 CHECK (is_frozen IN (0, 1)),
    -- Invariant: credited + written_off - refunded = available + leased + consumed - owed, where credited and refunded are
    -- sums over the lots.
    available_micro INTEGER NOT NULL DEFAULT 0 CHECK (available_micro >= 0),
    leased_micro    INTEGER NOT NULL DEFAULT 0 CHECK (leased_micro >= 0),
    consumed_micro  INTEGER NOT NULL DEFAULT 0 CHECK (consumed_micro >= 0),
    owed_micro      INTEGER NOT NULL DEFAULT 0 CHECK (owed_micro >= 0),
    written_off_micro INTEGER NOT NULL DEFAULT 0 CHECK (written_off_micro >= 0),
    -- Consumed and not yet a whole micro-dollar.
    carry_pico      INTEGER NOT NULL DEFAULT 0 CHECK (carry_pico BETWEEN 0 AND 999999),
    created_at      INTEGER NOT NULL
) STRICT;

CREATE TABLE api_key (
    id           BLOB    NOT NULL PRIMARY KEY,
    account_id   BLOB    NOT NULL REFERENCES account (id),
    -- HMAC-SHA256 of the key under the pepper.
    hash         BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32),
    name         TEXT,
    prefix       TEXT    NOT NULL,
    last_four    TEXT    NOT NULL,
    -- A JSON array of model names; NULL is all models.
    models       TEXT,
    expires_at   INTEGER,
    revoked_at   INTEGER,
    last_used_at INTEGER,
    created_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX api_key_account ON api_key (account_id);

-- What was credited, never updated by spending: what is left of a lot is a formula over what the account consumed.
CREATE TABLE lot (
    id             BLOB    NOT NULL PRIMARY KEY,
    account_id     BLOB    NOT NULL REFERENCES account (id),
    seq            INTEGER NOT NULL,
    kind           TEXT    NOT NULL CHECK (kind IN ('paid', 'promotional', 'adjustment')),
    amount_micro   INTEGER NOT NULL CHECK (amount_micro > 0),
    refunded_micro INTEGER NOT NULL DEFAULT 0 CHECK (refunded_micro BETWEEN 0 AND amount_micro),
    reason         TEXT    NOT NULL,
    created_at     INTEGER NOT NULL,
    UNIQUE (account_id, seq)
) STRICT;

-- What was done under an idempotency key, so that a repeat answers the same and does nothing.
CREATE TABLE operation (
    idempotency_key TEXT    NOT NULL PRIMARY KEY,
    -- The whole request as text: the same key for something else is a conflict.
    request         TEXT    NOT NULL,
    lot_id          BLOB    NOT NULL,
    amount_micro    INTEGER NOT NULL,
    created_at      INTEGER NOT NULL
) STRICT;

-- Double entry where money moves: the postings of an entry sum to zero; a positive amount is a debit.
CREATE TABLE entry (
    id         INTEGER NOT NULL PRIMARY KEY,
    kind       TEXT    NOT NULL,
    account_id BLOB    NOT NULL REFERENCES account (id),
    session_id BLOB,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX entry_account ON entry (account_id);
CREATE TABLE posting (
    entry_id     INTEGER NOT NULL REFERENCES entry (id),
    book         TEXT    NOT NULL,
    amount_micro INTEGER NOT NULL,
    PRIMARY KEY (entry_id, book)
) STRICT, WITHOUT ROWID;

-- One incarnation of a process. It is never resumed: recovery closes it and a new one begins.
CREATE TABLE session (
    id           BLOB    NOT NULL PRIMARY KEY,
    host         TEXT    NOT NULL,
    version      TEXT    NOT NULL,
    state        TEXT    NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'closed', 'lost')),
    opened_at    INTEGER NOT NULL,
    heartbeat_at INTEGER NOT NULL,
    closed_at    INTEGER,
    -- Every settlement of its journal up to this sequence number is in the tables.
    applied_seq  INTEGER NOT NULL DEFAULT 0,
    -- Costs above a lease are collected up to this sequence number.
    over_seq     INTEGER NOT NULL DEFAULT 0,
    CHECK (over_seq <= applied_seq)
) STRICT, WITHOUT ROWID;

-- A slice of an account's credit that one session alone consumes. Grants write here, the batches write to lease_use, so that a
-- slow batch never blocks a grant.
CREATE TABLE lease (
    session_id     BLOB    NOT NULL REFERENCES session (id),
    account_id     BLOB    NOT NULL REFERENCES account (id),
    granted_micro  INTEGER NOT NULL DEFAULT 0 CHECK (granted_micro >= 0),
    returned_micro INTEGER NOT NULL DEFAULT 0 CHECK (returned_micro BETWEEN 0 AND granted_micro),
    is_closed      INTEGER NOT NULL DEFAULT 0 CHECK (is_closed IN (0, 1)),
    PRIMARY KEY (session_id, account_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX lease_open ON lease (account_id) WHERE is_closed = 0;

CREATE TABLE lease_use (
    session_id    BLOB    NOT NULL,
    account_id    BLOB    NOT NULL,
    consumed_pico INTEGER NOT NULL DEFAULT 0 CHECK (consumed_pico >= 0),
    held_micro    INTEGER NOT NULL DEFAULT 0 CHECK (held_micro >= 0),
    PRIMARY KEY (session_id, account_id)
) STRICT, WITHOUT ROWID;

-- One row for each request that took a hold and sent something upstream. The identity is ordered by time.
CREATE TABLE request (
    id                BLOB    NOT NULL PRIMARY KEY,
    account_id        BLOB    NOT NULL,
    key_id            BLOB    NOT NULL,
    session_id        BLOB    NOT NULL,
    seq               INTEGER NOT NULL,
    created_at        INTEGER NOT NULL,
    client_request_id TEXT,
    model             TEXT    NOT NULL,
    provider          TEXT    NOT NULL,
    upstream_model    TEXT    NOT NULL,
    service_tier      TEXT,
    status            INTEGER NOT NULL,
    outcome           TEXT    NOT NULL,
    is_stream         INTEGER NOT NULL,
    -- A JSON object of the classes used.
    usage             TEXT    NOT NULL,
    usage_source      TEXT    NOT NULL,
    price_version     INTEGER NOT NULL,
    cost_pico         INTEGER NOT NULL CHECK (cost_pico >= 0),
    -- The part of the cost that the lease did not cover; collected from the account.
    over_pico         INTEGER NOT NULL CHECK (over_pico BETWEEN 0 AND cost_pico),
    latency_ms        INTEGER NOT NULL,
    ttft_ms           INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX request_account ON request (account_id, id);
CREATE INDEX request_over ON request (session_id, seq) WHERE over_pico > 0;

-- Control totals of each transaction of the batched writer.
CREATE TABLE batch (
    session_id BLOB    NOT NULL,
    seq_to     INTEGER NOT NULL,
    seq_from   INTEGER NOT NULL,
    row_count  INTEGER NOT NULL,
    cost_pico  INTEGER NOT NULL,
    over_pico  INTEGER NOT NULL,
    PRIMARY KEY (session_id, seq_to),
    CHECK (seq_from <= seq_to)
) STRICT, WITHOUT ROWID;

-- Settlements whose request row the database refused: charged all the same, kept whole for a person to look at.
CREATE TABLE quarantine (
    session_id BLOB    NOT NULL,
    seq        INTEGER NOT NULL,
    request_id BLOB    NOT NULL,
    account_id BLOB    NOT NULL,
    cost_pico  INTEGER NOT NULL,
    over_pico  INTEGER NOT NULL,
    record     BLOB    NOT NULL,
    error      TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (session_id, seq)
) STRICT, WITHOUT ROWID;

-- Prices in micro-dollars per million units, which is pico-dollars per unit. An import is a version; it replaces a model's whole set
-- of prices from its effective date on.
CREATE TABLE price_version (
    version      INTEGER NOT NULL PRIMARY KEY,
    effective_at INTEGER NOT NULL,
    imported_at  INTEGER NOT NULL
) STRICT;
CREATE TABLE price (
    version            INTEGER NOT NULL REFERENCES price_version (version),
    model              TEXT    NOT NULL,
    service_tier       TEXT    NOT NULL DEFAULT '',
    above_input_tokens INTEGER NOT NULL DEFAULT 0,
    class              TEXT    NOT NULL,
    price_pico         INTEGER NOT NULL CHECK (price_pico >= 0),
    PRIMARY KEY (version, model, service_tier, above_input_tokens, class)
) STRICT, WITHOUT ROWID;

-- What changed, in the order of commit: a counter in a row, not a sequence, so that a reader never skips one.
CREATE TABLE config_version (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    v  INTEGER NOT NULL
) STRICT;
INSERT INTO config_version (id, v) VALUES (1, 0);
CREATE TABLE change (
    v       INTEGER NOT NULL PRIMARY KEY,
    kind    TEXT    NOT NULL,
    subject BLOB
) STRICT;
