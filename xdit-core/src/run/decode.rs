//! Decodes a picture on all ranks, some rows each.

use burn::tensor::Tensor;
use xdit_comm::{Comm, LaunchOptions, local, run_ranks};

use crate::error::Result;
use crate::link::{catch, first_cause};
use crate::methods::vae::SplitRows;
use crate::rows::{Rows, Whole};
use crate::run::WAIT_LIMIT;
use crate::run::observer::Observer;
use crate::run::record::{Activity, Recorder};
use crate::split;

/// Gives some rows of `image` to each of at most `ranks` ranks, and puts together what `work` makes of them.
///
/// Ranks are threads of this process. There are no more of them than rows; with one, this thread is it. `observer`
/// hears what each of them did.
///
/// # Shapes
/// `image`: `[b, c, y, x]`; the result is as `work` makes it, its rows in the same order.
///
/// # Errors
/// The first cause, if a rank fails.
pub fn split_rows<F>(
    ranks: usize,
    image: Tensor<4>,
    observer: &mut dyn Observer,
    work: F,
) -> Result<Tensor<4>>
where
    F: Fn(Tensor<4>, &dyn Rows) -> Tensor<4> + Send + Sync + 'static,
{
    let [_, _, rows, _] = image.dims();
    let ranks = ranks.min(rows);
    let detailed = observer.wants_details();
    if ranks <= 1 {
        let mut recorder = Recorder::new(&local(), detailed);
        let decoded = recorder.time(Activity::Decode, || work(image, &Whole));
        observer.rank(recorder.report());
        return Ok(decoded);
    }
    let shares = split::even(rows, ranks);
    let rank = move |comm: Comm| {
        let own = shares[comm.rank()].clone();
        let mut recorder = Recorder::new(&comm, detailed);
        let rows = SplitRows::new(comm, shares.iter().map(ExactSizeIterator::len).collect());
        let own = image.clone().narrow(2, own.start, own.len());
        let part = catch(|| Ok(recorder.time(Activity::Decode, || work(own, &rows))))?;
        Ok((part, recorder.report()))
    };
    let options = LaunchOptions::default().timeout(WAIT_LIMIT).record_waits(detailed);
    let parts = run_ranks(ranks, &options, rank).map_err(first_cause)?;
    let (parts, reports): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    reports.into_iter().for_each(|report| observer.rank(report));
    Ok(Tensor::cat(parts, 2))
}
