//! What layers may say, case by case.
//!
//! `traps` has a case for each thing on which image builders are known to differ, `hostile` one for each attack that hit
//! some reader, `limits` the bounds, `properties` random archives, `differential` what other tools write, `corpus` the
//! fuzz targets.

mod corpus;
mod differential;
mod hostile;
mod limits;
mod properties;
mod traps;
