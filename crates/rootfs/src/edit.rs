//! Edits on a finished tree.
