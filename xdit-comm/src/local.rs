//! Worlds without a launcher.

use crate::endpoint::Endpoint;
use crate::fabric::Fabric;
use crate::{Comm, LaunchOptions};

/// The world of one rank: every operation completes at once.
pub fn local() -> Comm {
    Endpoint::world(Fabric::new(1, &LaunchOptions::default()), 0)
}

/// Every rank's end of a world of `size` ranks that nobody has started, in rank order.
///
/// They tell how large the world is and who is where, which is enough to plan what its ranks would do.
pub fn ends(size: usize) -> Vec<Comm> {
    let fabric = Fabric::new(size, &LaunchOptions::default());
    (0..size).map(|rank| Endpoint::world(fabric.clone(), rank)).collect()
}
