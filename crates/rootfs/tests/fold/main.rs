//! The fold against the rules: every trap by name, the security cases, limits, accounting, and random stacks of layers
//! against an independent model.

#![allow(
    clippy::format_push_string,
    clippy::needless_pass_by_value,
    clippy::unwrap_used,
    reason = "test code reads better so, and fails loudly"
)]

mod accounting;
mod dsl;
mod limits;
mod links;
mod metadata;
mod model;
mod parents;
mod random;
mod security;
mod whiteouts;
