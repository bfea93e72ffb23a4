-- That this database was put back from a backup. Sessions that it does not know, and accounts, are then of the time after the backup: their
-- journals are charged, and what they were granted did not happen here.
CREATE TABLE restore (
    restored_at INTEGER NOT NULL PRIMARY KEY,
    -- Everything up to then is in the backup.
    backup_at   INTEGER NOT NULL
) STRICT;
