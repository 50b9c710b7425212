//! A transformer in which one block takes a wrong skip connection.

use burn::tensor::Tensor;
use xdit_core::transformer::Transformer;
use xdit_tests::world::Job;
use xdit_tests::wrapped::{Wrapped, wrapped};

/// The mistake in the skip connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// It is the output of the block before, not of the one that it starts at.
    OfBlockBefore,
    /// Each token has another's.
    TokensMoved,
}

/// The run of `job` with the mistake `skip`, if any, in the skip connection to block `wrong`.
pub fn with_skip<T>(job: Job<T>, skip: Option<Skip>, wrong: usize) -> Job<Wrapped<T>>
where
    T: Transformer + 'static,
{
    wrapped(job, move || {
        Box::new(move |transformer: &T, index, mut hidden, context, attention| {
            if let Some(skip) = skip.filter(|_| index == wrong) {
                let taken = hidden.skips.get_mut(&index).expect("the block takes one");
                let n = taken.dims()[1];
                *taken = match skip {
                    Skip::OfBlockBefore => hidden.image.x.clone(),
                    Skip::TokensMoved => {
                        let [last, rest] = [(n - 1, 1), (0, n - 1)]
                            .map(|(start, count)| taken.clone().narrow(1, start, count));
                        Tensor::cat(vec![last, rest], 1)
                    }
                };
            }
            transformer.block(index, hidden, context, attention)
        })
    })
}
