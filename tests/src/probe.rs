//! A toy that is watched: which blocks run, and when a rank lets go of it.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use xdit_core::attention::Attention;
use xdit_core::plan::Plan;
use xdit_core::run::Loaded;
use xdit_core::tokens::Tokens;
use xdit_core::transformer::{Hidden, Transformer, TransformerSpec};

use crate::toy::{Context, Subject, Toy};
use crate::world::Job;

/// Is called before each block with its index. What it does belongs to the block.
pub type BeforeBlock = Arc<dyn Fn(usize) + Send + Sync>;

/// The toy, and whoever watches it.
pub struct Probe {
    toy: Toy,
    before_block: BeforeBlock,
    /// Its reference count tells how many shares there are.
    _alive: Arc<()>,
}

/// The run of `plan` by a watched toy. Each share that is loaded holds `alive`.
pub fn job(subject: &Subject, plan: Plan, before_block: &BeforeBlock, alive: &Arc<()>) -> Job<Probe> {
    let Job { plan, load, scheduler, guidance, noise } = subject.job(plan);
    let (before_block, alive) = (before_block.clone(), Arc::downgrade(alive));
    Job {
        plan,
        load: Box::new(move |share| {
            let Loaded { transformer: toy, parameter_bytes } = load(share)?;
            let alive = alive.upgrade().expect("the test is not over");
            let transformer = Probe { toy, before_block: before_block.clone(), _alive: alive };
            Ok(Loaded { transformer, parameter_bytes })
        }),
        scheduler,
        guidance,
        noise,
    }
}

impl Transformer for Probe {
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
        (self.before_block)(index);
        self.toy.block(index, hidden, context, attention)
    }

    fn finish(&self, hidden: Hidden, context: &Context) -> Tensor<3> {
        self.toy.finish(hidden, context)
    }
}
