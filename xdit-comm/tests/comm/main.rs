//! Collectives against a naive reference, failure injection, and a guard against tests that hang.

mod collectives;
mod failures;
mod point_to_point;
mod program;
mod properties;
mod sim;
mod traffic;
mod watchdog;
