//! The work of a picture by parts and operations, and their times on the device.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use xdit_core::profile::{Part, Site, Sum};

/// The parts that are not denoising.
const OTHER_PARTS: [&str; 2] = ["text encoders", "VAE"];
/// The operations that a table lists one by one.
const LISTED: usize = 25;

/// Additions and multiplications of the products, attention and convolutions of denoising.
pub fn denoising_flops(sums: &BTreeMap<Site, Sum>) -> f64 {
    let denoises = |site: &Site| site.part.is_some_and(|part| !OTHER_PARTS.contains(&part.name));
    sums.iter().filter(|(site, _)| denoises(site)).map(|(_, sum)| sum.flops).sum()
}

/// The device times of one picture, over all ranks.
#[derive(Debug, Serialize)]
pub struct Profile {
    /// Parts, in the order of their names. Consecutive blocks with the same work are one entry.
    pub parts: Vec<Row>,
    /// Operations within parts, longest first. What remains of the parts' time is the last entry.
    pub operations: Vec<Row>,
}

/// Calls that are alike.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// A part, such as `block 0-27`, or an operation.
    pub name: String,
    /// The sizes that determine the work of a call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<usize>,
    /// The number of calls.
    pub calls: usize,
    /// The time of all calls.
    pub seconds: f64,
    /// The time relative to that of all parts.
    pub share: f64,
    /// Additions and multiplications of products, attention and convolutions, over the time.
    pub tflops_per_s: f64,
}

impl Row {
    fn new(name: String, sizes: Vec<usize>, sum: &Sum, whole: f64) -> Self {
        let seconds = sum.time.as_secs_f64();
        let over = |value: f64, by: f64| if by > 0.0 { value / by } else { 0.0 };
        Self {
            name,
            sizes,
            calls: sum.calls,
            seconds,
            share: over(seconds, whole),
            tflops_per_s: over(sum.flops / 1e12, seconds),
        }
    }
}

impl Profile {
    /// Of everything recorded.
    pub fn new(sums: &BTreeMap<Site, Sum>) -> Self {
        let mut parts = BTreeMap::<Part, PartWork<'_>>::new();
        let mut operations = BTreeMap::<(&str, &[usize]), Sum>::new();
        for (site, sum) in sums {
            let Some(part) = site.part else { continue };
            let of_part = parts.entry(part).or_default();
            match site.operation {
                Some(name) => {
                    of_part.sum.flops += sum.flops;
                    of_part.operations.push((name, &site.sizes, sum.calls));
                    add(operations.entry((name, &site.sizes)).or_default(), sum);
                }
                None => add(&mut of_part.sum, sum),
            }
        }
        let whole: f64 = parts.values().map(|part| part.sum.time.as_secs_f64()).sum();
        let mut operations: Vec<_> = operations
            .into_iter()
            .map(|((name, sizes), sum)| Row::new(name.to_owned(), sizes.to_owned(), &sum, whole))
            .collect();
        operations.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let rest = (whole - operations.iter().map(|row| row.seconds).sum::<f64>()).max(0.0);
        operations.push(Row {
            name: "everything else".to_owned(),
            sizes: Vec::new(),
            calls: 0,
            seconds: rest,
            share: if whole > 0.0 { rest / whole } else { 0.0 },
            tflops_per_s: 0.0,
        });
        Self { parts: merge_blocks(parts, whole), operations }
    }

    /// Two tables.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut table = |title: &str, rows: &[Row]| {
            let sizes = |row: &Row| row.sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
            let names: Vec<_> = rows.iter().map(|row| format!("{} {}", row.name, sizes(row))).collect();
            let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(title.len()) + 2;
            let heads = ["calls", "ms", "ms each", "share", "TFLOP/s"];
            write!(text, "\n{title:<width$}").expect("text");
            heads.iter().for_each(|head| write!(text, "{head:>10}").expect("text"));
            text.push('\n');
            for (row, name) in rows.iter().zip(names) {
                let milliseconds = row.seconds * 1e3;
                let each = if row.calls > 0 { milliseconds / row.calls as f64 } else { 0.0 };
                let share = format!("{:.1} %", row.share * 100.0);
                writeln!(
                    text,
                    "{name:<width$}{:>10}{milliseconds:>10.2}{each:>10.4}{share:>10}{:>10.1}",
                    row.calls, row.tflops_per_s
                )
                .expect("text");
            }
        };
        table("part", &self.parts);
        let (listed, rest) = self.operations.split_at(LISTED.min(self.operations.len() - 1));
        let mut listed = listed.to_vec();
        let (last, others) = rest.split_last().expect("everything else");
        if !others.is_empty() {
            let total = |value: fn(&Row) -> f64| others.iter().map(value).sum::<f64>();
            let seconds = total(|row| row.seconds);
            listed.push(Row {
                name: format!("{} more operations", others.len()),
                sizes: Vec::new(),
                calls: others.iter().map(|row| row.calls).sum(),
                seconds,
                share: total(|row| row.share),
                tflops_per_s: total(|row| row.tflops_per_s * row.seconds) / seconds.max(f64::MIN_POSITIVE),
            });
        }
        listed.push(last.clone());
        table("operation", &listed);
        text
    }
}

fn add(sum: &mut Sum, other: &Sum) {
    sum.calls += other.calls;
    sum.flops += other.flops;
    sum.time += other.time;
}

/// The sum over a part, and its operations with the number of their calls.
#[derive(Default)]
struct PartWork<'a> {
    sum: Sum,
    operations: Vec<(&'static str, &'a [usize], usize)>,
}

/// One row for each part, and for each run of consecutive blocks that do the same work.
fn merge_blocks(parts: BTreeMap<Part, PartWork<'_>>, whole: f64) -> Vec<Row> {
    let mut merged: Vec<(Part, Option<usize>, PartWork<'_>)> = Vec::new();
    for (part, of_part) in parts {
        match merged.last_mut() {
            Some((first, Some(last), known))
                if first.name == part.name
                    && Some(*last + 1) == part.index
                    && known.operations == of_part.operations =>
            {
                *last += 1;
                add(&mut known.sum, &of_part.sum);
            }
            _ => merged.push((part, part.index, of_part)),
        }
    }
    let row = |(first, last, of_part): (Part, Option<usize>, PartWork<'_>)| {
        let name = match (first.index, last) {
            (Some(first_index), Some(last)) if first_index < last => {
                format!("{} {first_index}-{last}", first.name)
            }
            (Some(index), _) => format!("{} {index}", first.name),
            (None, _) => first.name.to_owned(),
        };
        Row::new(name, Vec::new(), &of_part.sum, whole)
    };
    merged.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn site(part: &'static str, index: Option<usize>, operation: Option<&'static str>) -> Site {
        let sizes = if operation.is_some() { vec![4, 8] } else { vec![] };
        Site { part: Some(Part { name: part, index }), operation, sizes }
    }

    fn sum(calls: usize, flops: f64, milliseconds: u64) -> Sum {
        Sum { calls, flops, time: Duration::from_millis(milliseconds) }
    }

    #[test]
    fn equal_blocks_are_one_row_and_the_rest_is_told_apart() {
        let mut sums = BTreeMap::new();
        for index in 0..3 {
            let calls = if index == 2 { 5 } else { 2 };
            sums.insert(site("block", Some(index), None), sum(2, 0.0, 100));
            sums.insert(site("block", Some(index), Some("linear")), sum(calls, 1e12, 75));
        }
        sums.insert(site("VAE", None, None), sum(1, 0.0, 100));
        sums.insert(site("VAE", None, Some("convolution")), sum(1, 3e12, 50));
        assert_eq!(denoising_flops(&sums), 3e12);
        let Profile { parts, operations } = Profile::new(&sums);
        let parts: Vec<_> = parts.iter().map(|row| (&*row.name, row.calls, row.share)).collect();
        assert_eq!(parts, [("VAE", 1, 0.25), ("block 0-1", 4, 0.5), ("block 2", 2, 0.25)]);
        let found: Vec<_> = operations.iter().map(|row| (&*row.name, row.calls, row.tflops_per_s)).collect();
        let (linear, convolution) = (3.0 / 0.225, 60.0);
        let expected = [("linear", 9, linear), ("convolution", 1, convolution), ("everything else", 0, 0.0)];
        assert_eq!(found, expected);
        assert!((operations[2].seconds - 0.125).abs() < 1e-9, "{operations:?}");
    }
}
