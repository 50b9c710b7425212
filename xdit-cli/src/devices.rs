//! `xdit devices`: what can compute here, and what is missing for others.

use std::fmt::Write;

use indicatif::HumanBytes;
use serde_json::{Value, json};
use xdit_core::Result;
use xdit_core::device::{Library, Listed, State, all, libraries};

use crate::args::{DevicesArgs, Dtype};
use crate::print;

/// Runs `xdit devices`.
///
/// # Errors
/// If standard output cannot be written.
pub fn run(args: &DevicesArgs) -> Result<()> {
    let (devices, libraries) = (all(), libraries());
    if args.json {
        let devices: Vec<Value> = devices.iter().map(of_device).collect();
        let libraries: Vec<Value> = libraries.iter().map(of_library).collect();
        return print(&format!("{:#}\n", json!({ "devices": devices, "libraries": libraries })));
    }
    print(&table(&devices, &libraries))
}

fn of_device(device: &Listed) -> Value {
    match &device.state {
        State::Usable { hardware, total_bytes, free_bytes, software, dtype } => json!({
            "name": device.name,
            "usable": true,
            "hardware": hardware,
            "total_bytes": total_bytes,
            "free_bytes": free_bytes,
            "software": software,
            "dtype": Dtype::of(*dtype),
        }),
        State::Missing { reason, hint } => {
            json!({ "name": device.name, "usable": false, "reason": reason, "hint": hint })
        }
    }
}

fn of_library(library: &Library) -> Value {
    match &library.state {
        Ok(version) => json!({ "library": library.name, "for": library.purpose, "version": version }),
        Err(reason) => json!({ "library": library.name, "for": library.purpose, "reason": reason }),
    }
}

/// One line a device, and below it what helps where one is missing.
fn table(devices: &[Listed], libraries: &[Library]) -> String {
    let mut out = String::new();
    let names = devices.iter().map(|device| device.name.len()).chain(libraries.iter().map(|l| l.name.len()));
    let width = names.max().unwrap_or(0);
    // Writing to a string does not fail.
    for Listed { name, state } in devices {
        let _ = match state {
            State::Usable { hardware, total_bytes, free_bytes, software, dtype } => {
                let memory = match (free_bytes, total_bytes) {
                    (Some(free), Some(total)) => {
                        format!("{} free of {}", HumanBytes(*free), HumanBytes(*total))
                    }
                    _ => "memory unknown".to_owned(),
                };
                let hardware = hardware.as_deref().unwrap_or("this machine's processor");
                let program = if *software { "; a program, which `auto` passes over" } else { "" };
                let dtype = format!("{dtype:?}").to_lowercase();
                writeln!(out, "{name:<width$}  {hardware}, {memory}, {dtype} by default{program}")
            }
            State::Missing { reason, hint } => {
                writeln!(out, "{name:<width$}  not usable: {reason}\n{:<width$}  hint: {hint}", "")
            }
        };
    }
    for Library { name, purpose, state } in libraries {
        let _ = match state {
            Ok(version) => writeln!(out, "{name:<width$}  {version}, for {purpose}"),
            Err(reason) => writeln!(out, "{name:<width$}  not used for {purpose}: {reason}"),
        };
    }
    out
}
