-- What a key may do besides its models and its end. NULL sets no limit.
ALTER TABLE api_key ADD COLUMN spend_limit_micro INTEGER CHECK (spend_limit_micro > 0);
-- Windows begin at midnight UTC, weeks on Monday.
ALTER TABLE api_key ADD COLUMN spend_window TEXT CHECK (spend_window IN ('total', 'day', 'week', 'month'));
-- A JSON array of addresses and networks from which it may be used.
ALTER TABLE api_key ADD COLUMN addresses TEXT;
-- Limits that apply besides those of the account.
ALTER TABLE api_key ADD COLUMN tier TEXT;
-- A JSON array of values of the parameter service_tier; NULL is what the configuration allows.
ALTER TABLE api_key ADD COLUMN service_tiers TEXT;
CREATE INDEX api_key_limited ON api_key (id) WHERE spend_limit_micro IS NOT NULL;

-- What keys with a limit spent, by window and by who settled it; written with the settlements. A cost counts in the window in which its
-- request came. window_start is 0 for a limit without windows.
CREATE TABLE key_spend (
    key_id       BLOB    NOT NULL,
    window_start INTEGER NOT NULL,
    session_id   BLOB    NOT NULL,
    spent_pico   INTEGER NOT NULL DEFAULT 0 CHECK (spent_pico >= 0),
    PRIMARY KEY (key_id, window_start, session_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX key_spend_window ON key_spend (window_start);

-- Which request has an account's Idempotency-Key. It is done once the request has a row, in progress while it has none and its session is
-- not closed, and nobody's after that: what has no row when its session is closed was never sent.
CREATE TABLE claim (
    account_id      BLOB    NOT NULL,
    idempotency_key TEXT    NOT NULL,
    request_id      BLOB    NOT NULL,
    session_id      BLOB    NOT NULL,
    created_at      INTEGER NOT NULL,
    PRIMARY KEY (account_id, idempotency_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX claim_created ON claim (created_at);
