//! The text that every rank of a sequence has whole is the same on all of them, bit for bit, after every block.

use std::sync::{Arc, Mutex};

use burn::tensor::{DType, Tensor};
use xdit_comm::LaunchOptions;
use xdit_core::attention::Attention;
use xdit_core::plan::mesh::Axis::{Ring, Tensor as Tp, Ulysses};
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::plan::{ParallelConfig, Plan};
use xdit_core::run::Loaded;
use xdit_core::tokens::Tokens;
use xdit_core::transformer::{Hidden, Transformer, TransformerSpec};
use xdit_tests::bits;
use xdit_tests::toy::{Context, Kind, Subject, Toy};
use xdit_tests::world::{Job, pictures, run_in};

/// The text after each block that a rank computed.
type Texts = Arc<Mutex<Vec<(usize, Vec<u32>)>>>;

/// The toy, and what it has made of the text.
struct Watched {
    toy: Toy,
    texts: Texts,
}

impl Transformer for Watched {
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
        let hidden = self.toy.block(index, hidden, context, attention);
        self.texts.lock().unwrap().extend(hidden.text.iter().map(|text| (index, bits(text))));
        hidden
    }

    fn finish(&self, hidden: Hidden, context: &Context) -> Tensor<3> {
        self.toy.finish(hidden, context)
    }
}

/// What each rank made of the text in a run on a mesh of `degrees`.
fn texts(degrees: &[(Axis, usize)], patches: usize) -> Vec<Vec<(usize, Vec<u32>)>> {
    let subject = Subject::new(Kind::Joint);
    let mesh = degrees.iter().fold(Mesh::default(), |mesh, &(axis, degree)| mesh.with(axis, degree));
    let config = ParallelConfig { mesh, patches: Some(patches), ..ParallelConfig::default() };
    let job = subject.job(Plan::new(&config, &subject.work()).unwrap());
    let (load, of_ranks) = (job.load, Arc::new(Mutex::new(Vec::<Texts>::new())));
    let seen = of_ranks.clone();
    let job = Job {
        plan: job.plan,
        load: Box::new(move |share| {
            let Loaded { transformer: toy, parameter_bytes } = load(share)?;
            let texts = Texts::default();
            seen.lock().unwrap().push(texts.clone());
            Ok(Loaded { transformer: Watched { toy, texts }, parameter_bytes })
        }),
        scheduler: job.scheduler,
        guidance: job.guidance,
        noise: job.noise,
    };
    pictures(run_in(job, &LaunchOptions::default(), |world| world));
    let of_ranks = of_ranks.lock().unwrap();
    of_ranks.iter().map(|texts| texts.lock().unwrap().clone()).collect()
}

#[test]
fn the_text_is_the_same_on_all_ranks() {
    let meshes: [&[(Axis, usize)]; 8] = [
        &[(Ring, 2)],
        &[(Ring, 3)],
        &[(Ring, 5)],
        &[(Ulysses, 3)],
        &[(Tp, 3)],
        &[(Ring, 2), (Ulysses, 3)],
        &[(Ring, 3), (Tp, 2)],
        &[(Ring, 2), (Ulysses, 2), (Tp, 2)],
    ];
    for degrees in meshes {
        for patches in [1, 3] {
            let texts = texts(degrees, patches);
            let ranks: usize = degrees.iter().map(|(_, degree)| degree).product();
            assert_eq!(texts.len(), ranks);
            // Each step and branch, but for the last block, which leaves no text.
            assert_eq!(texts[0].len(), 3 * 2 * 4, "{degrees:?}");
            assert!(
                texts.iter().all(|text| *text == texts[0]),
                "{degrees:?}, M = {patches}: the texts differ"
            );
        }
    }
}
