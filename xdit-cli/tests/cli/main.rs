//! The program `xdit`, run as a user runs it, on the checkpoint that it writes itself.
#![forbid(unsafe_code)]

mod demo;
mod errors;
mod examples;
mod generate;
mod help;
mod inspect;
#[cfg(unix)]
mod interrupt;
mod trace;
mod workspace;
