//! builderd
