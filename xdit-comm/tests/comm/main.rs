//! Exchanges of many patterns against a naive reference, failure injection, and a guard against tests that hang.

mod collectives;
mod failures;
mod patterns;
mod point_to_point;
mod processes;
mod program;
mod properties;
mod sim;
mod watchdog;
