//! Runs the program `xdit` as a user would, on the checkpoint that it writes itself.
#![forbid(unsafe_code)]

mod bench;
mod built_in;
mod clips;
mod damaged;
mod errors;
mod examples;
mod full_size;
#[path = "../../../tests/src/full_size.rs"]
#[expect(dead_code, reason = "the loading benchmark uses the rest")]
mod full_size_files;
mod generate;
mod help;
mod hub;
#[path = "../../../xdit-core/tests/hub/server.rs"]
#[expect(dead_code, reason = "the tests of the hub use the rest")]
mod hub_server;
mod inspect;
#[cfg(unix)]
mod interrupt;
mod models;
mod odd;
mod plan;
mod preview;
mod processes;
mod random;
mod standard_output;
mod trace;
mod workspace;
