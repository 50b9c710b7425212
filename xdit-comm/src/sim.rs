//! The simulator: a world of threads with simulated time and seeded network faults.
//!
//! A seed reproduces a run exactly. Nothing sleeps: a lost message or a dead rank costs its peers the limit on waits in
//! simulated time, and no real time. Unlike in real time, a failure does not reach all ranks at once: it spreads
//! through waits, and a rank that does not depend on the failed one finishes. A simulated rank must use its
//! communicators from its own thread only.

use std::time::Duration;

use crate::fabric::Address;

/// A network and its faults, for [`LaunchOptions::sim`](crate::LaunchOptions::sim).
#[derive(Clone, Debug, PartialEq)]
pub struct Sim {
    /// Determines the delay or loss of each message.
    pub seed: u64,
    /// The minimum delay of every message.
    pub latency: Duration,
    /// The largest additional delay of a message, drawn uniformly. With jitter, messages may overtake each other.
    pub jitter: Duration,
    /// The speed of each link; infinity makes delays independent of message sizes.
    pub bytes_per_s: f64,
    /// The probability that a message never arrives.
    pub loss: f64,
    /// The faults of ranks.
    pub faults: Vec<Fault>,
}

/// A fault of a rank, at one of its operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// World rank.
    pub rank: usize,
    /// The number of operations the rank has issued before, in all its groups.
    pub operation: u64,
    /// The kind of fault.
    pub kind: FaultKind,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The rank dies without notice, after it has sent the first `messages` messages of the operation.
    Die {
        /// The number of messages that are still sent.
        messages: usize,
    },
    /// The rank pauses for this long and then continues.
    Stall(Duration),
}

impl Sim {
    /// A network without faults, with 10 µs latency, up to 1 ms jitter and 10 GB/s.
    pub fn new(seed: u64) -> Self {
        let (latency, jitter) = (Duration::from_micros(10), Duration::from_millis(1));
        Self { seed, latency, jitter, bytes_per_s: 1e10, loss: 0.0, faults: Vec::new() }
    }

    /// A network of `size` ranks with faults drawn from the seed. All have jitter; one third of the seeds also lose
    /// messages, and in another third a rank dies or stalls (up to 3 s) within its first `operations` operations.
    ///
    /// # Panics
    /// If `size` or `operations` is zero.
    pub fn hostile(seed: u64, size: usize, operations: u64) -> Self {
        assert!(size > 0 && operations > 0, "no rank or no operation to disturb");
        let draw = |salt: u64| mix([seed, salt]);
        let mut sim = Self { jitter: Duration::from_millis(draw(0) % 20), ..Self::new(seed) };
        match draw(1) % 3 {
            0 => {}
            1 => sim.loss = 0.02 * fraction(draw(2)),
            _ => {
                let kind = match draw(3) % 2 {
                    0 => FaultKind::Die { messages: (draw(4) % size as u64) as usize },
                    _ => FaultKind::Stall(Duration::from_millis(draw(4) % 3_000)),
                };
                let rank = (draw(5) % size as u64) as usize;
                sim.faults.push(Fault { rank, operation: draw(6) % operations, kind });
            }
        }
        sim
    }

    /// The same network with one more fault.
    pub fn with_fault(mut self, rank: usize, operation: u64, kind: FaultKind) -> Self {
        self.faults.push(Fault { rank, operation, kind });
        self
    }

    pub(crate) fn fault(&self, rank: usize, operation: u64) -> Option<FaultKind> {
        self.faults
            .iter()
            .find(|fault| (fault.rank, fault.operation) == (rank, operation))
            .map(|fault| fault.kind)
    }

    /// The delay of the message at `address`, or `None` if it is lost.
    pub(crate) fn delay(&self, address: &Address, size_bytes: usize) -> Option<Duration> {
        let Address { communicator, from, to, sequence } = *address;
        if from == to {
            return Some(Duration::ZERO);
        }
        let draw = |salt| fraction(mix([self.seed, salt, communicator, from as u64, to as u64, sequence]));
        let transfer = Duration::from_secs_f64(size_bytes as f64 / self.bytes_per_s);
        (draw(0) >= self.loss).then(|| self.latency + self.jitter.mul_f64(draw(1)) + transfer)
    }
}

/// Hashes words into one by chaining the SplitMix64 finaliser. The result is the same on all platforms and builds.
///
/// # Source
/// Steele, Lea, Flood: *Fast splittable pseudorandom number generators*, OOPSLA 2014, figure 16.
pub(crate) fn mix(words: impl IntoIterator<Item = u64>) -> u64 {
    words.into_iter().fold(0, |state, word| {
        let z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// Uniform in `[0, 1)`.
fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_is_splitmix64() {
        // The first outputs of the generator seeded with 0 and with its increment.
        assert_eq!(mix([0]), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix([0x9e37_79b9_7f4a_7c15]), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn hostile_seeds_bring_each_kind_of_trouble() {
        let seeds: Vec<_> = (0..100).map(|seed| Sim::hostile(seed, 4, 10)).collect();
        let with = |kind: fn(&Sim) -> bool| seeds.iter().filter(|sim| kind(sim)).count();
        assert!(with(|sim| sim.loss > 0.0) > 20);
        assert!(with(|sim| matches!(sim.faults[..], [Fault { kind: FaultKind::Die { .. }, .. }])) > 10);
        assert!(with(|sim| matches!(sim.faults[..], [Fault { kind: FaultKind::Stall(_), .. }])) > 10);
        assert!(with(|sim| sim.loss == 0.0 && sim.faults.is_empty()) > 20);
    }
}
