"""Steps that make the student of a finished run smaller."""
