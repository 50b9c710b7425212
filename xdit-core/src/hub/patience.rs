//! How long requests that failed are repeated.

use super::fault::Fault;
use std::time::{Duration, Instant};

/// The longest pause that a server may ask for: limits of the hub are counted in windows of five minutes.
const MAX_ASKED: Duration = Duration::from_secs(600);
/// The shortest pause before a request is repeated that the server answered: one that asks for none is not flooded.
const MIN_ASKED: Duration = Duration::from_secs(1);
/// The first pause before a request is repeated, if the server asks for none; each is twice the one before.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(16);
/// A request is repeated at least so often.
const MIN_ATTEMPTS: u32 = 3;

/// The pauses between the attempts of one request, or of one file.
pub(super) struct Patience {
    /// The time in which nothing comes until the request is given up.
    limit: Duration,
    /// The first failure since something came.
    since: Option<Instant>,
    failures: u32,
    /// The longest pause that the server asked for since then.
    asked: Duration,
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, since: None, failures: 0, asked: Duration::ZERO }
    }

    /// Something came.
    pub(super) fn renew(&mut self) {
        *self = Self::new(self.limit);
    }

    /// The pause after `fault`, before the next attempt; `None` if there should be none.
    pub(super) fn pause(&mut self, fault: &Fault) -> Option<Duration> {
        let elapsed = self.since.get_or_insert_with(Instant::now).elapsed();
        self.pause_after(elapsed, fault)
    }

    fn pause_after(&mut self, elapsed: Duration, fault: &Fault) -> Option<Duration> {
        self.failures += 1;
        let asked = match fault {
            Fault::Status { pause, .. } => *pause,
            _ => None,
        };
        if !fault.is_transient() || asked.is_some_and(|asked| asked > MAX_ASKED) {
            return None;
        }
        self.asked = self.asked.max(asked.unwrap_or_default());
        // After a long pause, the server has another chance.
        let limit = self.limit.max(2 * self.asked);
        if elapsed >= limit && self.failures >= MIN_ATTEMPTS {
            return None;
        }
        let own = FIRST.saturating_mul(1 << (self.failures - 1).min(8)).min(LONGEST);
        Some(asked.map_or(own, |asked| asked.max(MIN_ASKED)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(pause: Option<u64>) -> Fault {
        Fault::Status { status: 503, code: None, pause: pause.map(Duration::from_secs) }
    }

    /// The pauses in seconds, until a request is given up.
    fn pauses(limit: u64, faults: impl Fn(u32) -> Fault) -> Vec<f64> {
        let (mut patience, mut elapsed, mut found) =
            (Patience::new(Duration::from_secs(limit)), Duration::ZERO, Vec::new());
        while let Some(pause) = patience.pause_after(elapsed, &faults(found.len() as u32)) {
            found.push(pause.as_secs_f64());
            elapsed += pause;
        }
        found
    }

    #[test]
    fn requests_are_repeated_for_at_least_the_limit() {
        let found = pauses(60, |_| busy(None));
        assert_eq!(found, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0]);
        assert!(found.iter().sum::<f64>() >= 60.0);
        assert_eq!(pauses(0, |_| Fault::Network("down".to_owned())), [0.5, 1.0]);
    }

    #[test]
    fn pauses_that_a_server_asks_for_are_kept() {
        assert_eq!(pauses(60, |attempt| busy((attempt == 0).then_some(300)))[..2], [300.0, 1.0]);
        // One that never has time is given up as well.
        assert_eq!(pauses(60, |_| busy(Some(0))).len(), 60);
        assert_eq!(pauses(60, |_| busy(Some(100))), [100.0, 100.0]);
        assert_eq!(pauses(60, |_| busy(Some(601))), [0.0; 0]);
    }

    #[test]
    fn what_is_refused_is_not_repeated() {
        let refused = |status| move |_| Fault::Status { status, code: None, pause: None };
        assert_eq!(pauses(60, refused(404)), [0.0; 0]);
        assert_eq!(pauses(60, |_| Fault::strange("odd".to_owned())), [0.0; 0]);
    }
}
