//! Worlds without a launcher.

use crate::endpoint::Endpoint;
use crate::fabric::Fabric;
use crate::{Comm, LaunchOptions};

/// A world of one rank, in which every operation completes at once.
pub fn local() -> Comm {
    Endpoint::world(Fabric::new(1, &LaunchOptions::default()), 0)
}

/// The end of every rank in a world of `size` ranks, in rank order, without starting the ranks.
///
/// They have the size of the world and the position of each rank, which is enough to plan a run.
pub fn ends(size: usize) -> Vec<Comm> {
    let fabric = Fabric::new(size, &LaunchOptions::default());
    (0..size).map(|rank| Endpoint::world(fabric.clone(), rank)).collect()
}
