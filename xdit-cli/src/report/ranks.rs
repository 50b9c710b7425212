//! The measurements of each rank.

use serde::Serialize;
use serde_json::{Map, Value};
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::run::record::{RankReport, Times, Traffic};

/// The measurements of one rank.
#[derive(Debug, Serialize)]
pub struct Rank {
    /// The index of the rank.
    rank: usize,
    /// Its coordinate on each axis of the mesh.
    coordinates: Map<String, Value>,
    /// Its time, by kind of activity.
    seconds: Seconds,
    /// The size of its transformer parameters.
    parameter_bytes: u64,
    /// The peak size of the keys and values that it kept between calls of attention.
    peak_kv_bytes: u64,
    /// Its transfers and waits, by group and operation.
    traffic: Vec<Row>,
}

/// Times in seconds, which do not overlap.
#[derive(Debug, Serialize)]
struct Seconds {
    load: f64,
    compute: f64,
    wait: f64,
    communication: f64,
    decode: f64,
}

/// One operation in the groups along the same axes.
#[derive(Debug, Serialize)]
struct Row {
    /// The names of the axes; `world` for conditions, and `vae` for the rows of pictures.
    group: String,
    operation: String,
    calls: u64,
    messages: u64,
    sent_bytes: u64,
    wait_s: f64,
}

/// A number for each axis of the mesh, by the name of the axis.
pub fn by_axis(number: impl Fn(Axis) -> usize) -> Map<String, Value> {
    Axis::ALL.into_iter().map(|axis| (axis.name().to_owned(), number(axis).into())).collect()
}

/// The measurements of all ranks of `mesh`. A rank may have several of the `reports`.
pub fn ranks(reports: &[RankReport], mesh: &Mesh) -> Vec<Rank> {
    (0..mesh.size()).map(|rank| Rank::new(rank, reports, mesh)).collect()
}

impl Rank {
    fn new(rank: usize, reports: &[RankReport], mesh: &Mesh) -> Self {
        let own = || reports.iter().filter(|report| report.rank == rank);
        let mut times = Times::default();
        own().for_each(|report| times += report.times);
        let mut traffic = Traffic::default();
        own().for_each(|report| traffic.merge(&report.traffic));
        Self {
            rank,
            coordinates: by_axis(|axis| mesh.coordinate(rank, axis)),
            seconds: Seconds {
                load: times.load.as_secs_f64(),
                compute: times.compute.as_secs_f64(),
                wait: times.wait.as_secs_f64(),
                communication: times.communication.as_secs_f64(),
                decode: times.decode.as_secs_f64(),
            },
            parameter_bytes: own().map(|report| report.parameter_bytes).sum(),
            peak_kv_bytes: own().map(|report| report.peak_kv_bytes).max().unwrap_or(0),
            traffic: traffic
                .iter()
                .map(|(group, operation, count)| Row {
                    group: group.to_owned(),
                    operation: operation.to_string(),
                    calls: count.calls,
                    messages: count.messages,
                    sent_bytes: count.sent_bytes,
                    wait_s: traffic.waited(group, operation).as_secs_f64(),
                })
                .collect(),
        }
    }
}
