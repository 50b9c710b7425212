//! The simulator: a thread world in which time is simulated and the network misbehaves from a seed.
//!
//! A seed reproduces a run exactly. Nothing sleeps: a lost message or a dead rank costs its peers the limit on waits
//! in simulated time and no real time. Nor is there a time at which all ranks learn of a failure, as in real time:
//! the news travels along waits, and a rank that does not depend on the failed one finishes. A simulated rank must use
//! its communicators from its own thread only.

use std::time::Duration;

use crate::fabric::Address;

/// A network, and what goes wrong in it. Passed to [`LaunchOptions::sim`](crate::LaunchOptions::sim).
#[derive(Clone, Debug, PartialEq)]
pub struct Sim {
    /// Decides on delays and losses, message by message.
    pub seed: u64,
    /// Time every message takes.
    pub latency: Duration,
    /// Up to this much more time for each message, uniformly; messages then overtake each other.
    pub jitter: Duration,
    /// Speed of each link; infinite for a network that size does not slow down.
    pub bytes_per_s: f64,
    /// Probability that a message never arrives.
    pub loss: f64,
    /// What befalls ranks.
    pub faults: Vec<Fault>,
}

/// Something that happens to a rank as it issues an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// World rank.
    pub rank: usize,
    /// Operations the rank has issued before, in all its groups.
    pub operation: u64,
    /// What happens.
    pub kind: FaultKind,
}

/// What can happen to a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The rank dies without a word, once the first `messages` messages of the operation have left.
    Die {
        /// Messages that still leave.
        messages: usize,
    },
    /// The rank does nothing for this long, then goes on.
    Stall(Duration),
}

impl Sim {
    /// A sound network with 10 µs latency, up to 1 ms jitter and 10 GB/s.
    pub fn new(seed: u64) -> Self {
        let (latency, jitter) = (Duration::from_micros(10), Duration::from_millis(1));
        Self { seed, latency, jitter, bytes_per_s: 1e10, loss: 0.0, faults: Vec::new() }
    }

    /// A world of `size` ranks with trouble drawn from the seed: by thirds jitter only, lost messages too, or a rank
    /// that dies or stalls (for up to 3 s) within its first `operations` operations.
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

    /// The same network with one fault more.
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

    /// How long the message at `address` is under way; `None` if it is lost.
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

/// Hashes words into one: the SplitMix64 finaliser, chained. The same on every platform and in every build.
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
