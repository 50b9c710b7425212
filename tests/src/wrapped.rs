//! A transformer whose blocks run inside a closure of the test, with contexts that may be wrong.

use burn::tensor::{DType, Tensor};
use xdit_core::attention::Attention;
use xdit_core::run::Loaded;
use xdit_core::tokens::Tokens;
use xdit_core::transformer::{Hidden, Transformer, TransformerSpec};

use crate::world::{Job, Load};

/// Runs a block of the transformer. The arguments after the transformer are those of [`Transformer::block`].
pub type Block<T> =
    Box<dyn Fn(&T, usize, Hidden, &<T as Transformer>::Context, &mut dyn Attention) -> Hidden + Send + Sync>;

/// A transformer, and the closure that runs its blocks.
pub struct Wrapped<T: Transformer> {
    transformer: T,
    block: Block<T>,
    batch: Batch,
}

/// The branches that a context of several is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Batch {
    /// The right ones.
    #[default]
    Sound,
    /// The same in reverse order.
    Reversed,
    /// The first one in the place of each.
    FirstOnly,
}

/// The run of `job` with contexts of several branches as `batch` says.
pub fn batched<T: Transformer + 'static>(job: Job<T>, batch: Batch) -> Job<Wrapped<T>> {
    let plain = || -> Block<T> {
        Box::new(|transformer, index, hidden, context, attention| {
            transformer.block(index, hidden, context, attention)
        })
    };
    wrapped_with(job, batch, plain)
}

/// The run of `job` with wrapped transformers. `wrap` makes the closure of each share that is loaded.
pub fn wrapped<T: Transformer + 'static>(
    job: Job<T>,
    wrap: impl Fn() -> Block<T> + Send + Sync + 'static,
) -> Job<Wrapped<T>> {
    wrapped_with(job, Batch::Sound, wrap)
}

fn wrapped_with<T: Transformer + 'static>(
    job: Job<T>,
    batch: Batch,
    wrap: impl Fn() -> Block<T> + Send + Sync + 'static,
) -> Job<Wrapped<T>> {
    let Job { plan, load, scheduler, guidance, noise } = job;
    let load: Load<Wrapped<T>> = Box::new(move |share| {
        let Loaded { transformer, parameter_bytes } = load(share)?;
        Ok(Loaded { transformer: Wrapped { transformer, block: wrap(), batch }, parameter_bytes })
    });
    Job { plan, load, scheduler, guidance, noise }
}

impl<T: Transformer> Transformer for Wrapped<T> {
    type Conditions = T::Conditions;
    type Context = T::Context;

    fn spec(&self) -> &TransformerSpec {
        self.transformer.spec()
    }

    fn dtype(&self) -> DType {
        self.transformer.dtype()
    }

    fn contexts(&self, branches: &[&T::Conditions], timesteps: &[f32]) -> Vec<T::Context> {
        let branches: Vec<_> = match self.batch {
            Batch::Sound => branches.to_vec(),
            Batch::Reversed => branches.iter().rev().copied().collect(),
            Batch::FirstOnly => vec![branches[0]; branches.len()],
        };
        self.transformer.contexts(&branches, timesteps)
    }

    fn context_bytes(&self) -> usize {
        self.transformer.context_bytes()
    }

    fn text_shape(&self, context: &T::Context) -> Option<[usize; 3]> {
        self.transformer.text_shape(context)
    }

    fn embed(&self, latents: Tokens, context: &T::Context) -> Hidden {
        self.transformer.embed(latents, context)
    }

    fn block(
        &self,
        index: usize,
        hidden: Hidden,
        context: &T::Context,
        attention: &mut dyn Attention,
    ) -> Hidden {
        (self.block)(&self.transformer, index, hidden, context, attention)
    }

    fn finish(&self, hidden: Hidden, context: &T::Context) -> Tensor<3> {
        self.transformer.finish(hidden, context)
    }
}
