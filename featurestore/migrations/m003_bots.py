"""Why a row's session is a program's, null where it may be a person's."""

SQL = "ALTER TABLE events ADD COLUMN bot VARCHAR"
