//! Worlds without a launcher.

use crate::endpoint::Endpoint;
use crate::fabric::Fabric;
use crate::{Comm, LaunchOptions};

/// The world of one rank: every operation completes at once and sends nothing.
///
/// ```
/// use xdit_comm::{Buffer, Reduce, local};
///
/// let alone = local();
/// let sum = alone.all_reduce(Buffer::from_vec(vec![1.0f32, 2.0]), Reduce::Sum).wait()?;
/// assert_eq!(sum.elements::<f32>(), [1.0, 2.0].as_slice());
/// assert_eq!(alone.traffic().total().messages, 0);
/// # Ok::<(), xdit_comm::Error>(())
/// ```
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
