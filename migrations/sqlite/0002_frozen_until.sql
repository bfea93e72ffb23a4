-- When a freeze ends by itself: the command that refunds may be killed before it ends it.
ALTER TABLE account ADD COLUMN frozen_until INTEGER NOT NULL DEFAULT 0;
