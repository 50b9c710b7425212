//! A toy whose blocks run inside a closure of the test.

use burn::tensor::{DType, Tensor};
use xdit_core::attention::Attention;
use xdit_core::run::Loaded;
use xdit_core::tokens::Tokens;
use xdit_core::transformer::{Hidden, Transformer, TransformerSpec};

use crate::toy::{Context, Toy};
use crate::world::{Job, Load};

/// Runs a block of the toy. The arguments after the toy are those of [`Transformer::block`].
pub type Block = Box<dyn Fn(&Toy, usize, Hidden, &Context, &mut dyn Attention) -> Hidden + Send + Sync>;

/// A toy transformer, and the closure that runs its blocks.
pub struct Wrapped {
    toy: Toy,
    block: Block,
}

/// The run of `job` with wrapped toys. `wrap` makes the closure of each share that is loaded.
pub fn wrapped(job: Job<Toy>, wrap: impl Fn() -> Block + Send + Sync + 'static) -> Job<Wrapped> {
    let Job { plan, load, scheduler, guidance, noise } = job;
    let load: Load<Wrapped> = Box::new(move |share| {
        let Loaded { transformer: toy, parameter_bytes } = load(share)?;
        Ok(Loaded { transformer: Wrapped { toy, block: wrap() }, parameter_bytes })
    });
    Job { plan, load, scheduler, guidance, noise }
}

impl Transformer for Wrapped {
    type Conditions = Tensor<3>;
    type Context = Context;

    fn spec(&self) -> &TransformerSpec {
        self.toy.spec()
    }

    fn dtype(&self) -> DType {
        self.toy.dtype()
    }

    fn contexts(&self, text: &Tensor<3>, timesteps: &[f32]) -> Vec<Context> {
        self.toy.contexts(text, timesteps)
    }

    fn context_bytes(&self) -> usize {
        self.toy.context_bytes()
    }

    fn text_shape(&self, context: &Context) -> Option<[usize; 3]> {
        self.toy.text_shape(context)
    }

    fn embed(&self, latents: Tokens, context: &Context) -> Hidden {
        self.toy.embed(latents, context)
    }

    fn block(
        &self,
        index: usize,
        hidden: Hidden,
        context: &Context,
        attention: &mut dyn Attention,
    ) -> Hidden {
        (self.block)(&self.toy, index, hidden, context, attention)
    }

    fn finish(&self, hidden: Hidden, context: &Context) -> Tensor<3> {
        self.toy.finish(hidden, context)
    }
}
