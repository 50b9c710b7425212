//! Formats an inspection as a table for a terminal with 80 columns.

use std::fmt::Write;

use indicatif::HumanBytes;

use super::{Component, Inspection};

/// Formats the table.
pub fn render(inspection: &Inspection) -> String {
    let head = ["component", "class", "parameters", "type", "on disk"].map(str::to_owned);
    let rows: Vec<[String; 5]> = [head].into_iter().chain(inspection.components.iter().map(row)).collect();
    let place = if inspection.download_bytes > 0 { "of" } else { "in" };
    let mut out = format!("{} {place} {}\n\n", inspection.class, inspection.path);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            // Words are left-aligned, numbers right-aligned.
            let _ = match column {
                2 | 4 => write!(line, "{cell:>width$}  "),
                _ => write!(line, "{cell:<width$}  "),
            };
        }
        out += line.trim_end();
        out.push('\n');
    }
    let memory = inspection.memory;
    let _ = writeln!(
        out,
        "\nparameters   {} on disk as {}\nmemory       {} as f32, {} as bf16 (the largest component)",
        count(inspection.parameters),
        HumanBytes(inspection.bytes as u64),
        HumanBytes(memory.f32_bytes as u64),
        HumanBytes(memory.bf16_bytes as u64),
    );
    if inspection.download_bytes > 0 {
        let _ = writeln!(out, "download     {} before a run", HumanBytes(inspection.download_bytes));
    }
    if let Some(defaults) = &inspection.defaults {
        let _ = writeln!(
            out,
            "defaults     {}x{} pixels, {} steps, guidance {}{}",
            defaults.width,
            defaults.height,
            defaults.num_inference_steps,
            defaults.guidance_scale,
            match defaults.max_sequence_length {
                0 => String::new(),
                tokens => format!(", {tokens} tokens"),
            },
        );
    }
    if let Some(problem) = &inspection.problem {
        let _ = writeln!(out, "cannot run   {problem}");
    }
    out
}

fn row(component: &Component) -> [String; 5] {
    let (name, class) = (component.name.clone(), component.class.clone());
    match &component.weights {
        None => [name, class, String::new(), String::new(), String::new()],
        Some(weights) => {
            let bytes = HumanBytes(weights.bytes as u64);
            let disk = match weights.files.len() {
                1 => bytes.to_string(),
                files => format!("{bytes} in {files} files"),
            };
            [name, class, count(weights.parameters), weights.dtypes.join(", "), disk]
        }
    }
}

/// Formats a count with three digits and a unit.
fn count(number: usize) -> String {
    let number = number as f64;
    let (divisor, unit) = match number {
        _ if number >= 1e9 => (1e9, " B"),
        _ if number >= 1e6 => (1e6, " M"),
        _ if number >= 1e3 => (1e3, " k"),
        _ => (1.0, ""),
    };
    let scaled = number / divisor;
    let digits = if divisor == 1.0 || scaled >= 100.0 {
        0
    } else if scaled >= 10.0 {
        1
    } else {
        2
    };
    format!("{scaled:.digits$}{unit}")
}
