//! The builderd daemon and its command line.
//!
//! Everything that knows a wire format, an environment variable or a terminal is here; what a build is stands in
//! `builder_core`. A request passes through
//!
//! 1. [`edge`]: one port for gRPC, gRPC-Web and Connect, with limits, deadlines and spans for all of them,
//! 2. [`service`]: the methods,
//! 3. [`convert`]: wire types into domain types, with an error that names the field,
//! 4. [`status`]: domain errors into status codes.

#![forbid(unsafe_code)]

pub mod audit;
pub mod auth;
pub mod cli;
pub mod commands;
pub mod config;
pub mod convert;
pub mod daemon;
pub mod edge;
pub mod exit;
mod file_version;
pub mod guest;
pub mod isolation;
pub mod logging;
pub mod prices;
pub mod proto;
pub mod service;
mod size;
pub mod status;
pub mod telemetry;
pub mod tls;
