//! Memory: ranks of a process share layers and their conditions, and memory does not grow with the number of steps.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{DType, Tensor};
use cap::Cap;
use serde_json::json;
use xdit_comm::{Comm, LaunchOptions, run_ranks};
use xdit_core::attention::Attention;
use xdit_core::link::HostLink;
use xdit_core::pipeline::LoadOptions;
use xdit_core::placement::Share;
use xdit_core::plan::cost::{BlockExchanges, RowExchanges, Sizes, Weighed, costs};
use xdit_core::plan::guidance::{Branch, Guidance};
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::plan::{ParallelConfig, Plan, Work};
use xdit_core::run::Loaded;
use xdit_core::run::execute::Groups;
use xdit_core::scheduler::{Scheduler, scheduler};
use xdit_core::tokens::{Positions, Tokens};
use xdit_core::transformer::{Hidden, Transformer, TransformerSpec};
use xdit_core::weights::{ParameterBytes, Residency, SharedLayers, Weights};
use xdit_models::component::Component;
use xdit_models::flux::{self, Flux};
use xdit_models::latent_diffusion::{Published, TransformerConfig};
use xdit_models::pixart::{self, PixArt};
use xdit_models::sd3::{self, Sd3};
use xdit_models::sharding::Sharded;
use xdit_models::unet::UNet;
use xdit_tests::on_ranks::mesh;
use xdit_tests::sparse::SparsePixArt;
use xdit_tests::toy::{Kind, Subject, random};
use xdit_tests::world::{Job, run};
use xdit_tests::{bits, device, goldens};

/// Counts allocated memory.
#[global_allocator]
static HEAP: Cap<std::alloc::System> = Cap::new(std::alloc::System, usize::MAX);

/// Runs the tests of this file one after another, because they measure the memory of the process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn options() -> LoadOptions {
    // The variant is used where it exists.
    LoadOptions { variant: Some("fp16".to_owned()), ..LoadOptions::new(device(), DType::F32) }
}

const STEM: &str = "diffusion_pytorch_model";

/// A transformer that counts the creations of contexts, and reports a given size for them.
struct Observed<T> {
    model: T,
    /// The reported size of a context in bytes, if it is not the model's.
    context_bytes: Option<usize>,
    calls: Arc<AtomicUsize>,
}

impl<T: Transformer> Transformer for Observed<T> {
    type Conditions = T::Conditions;
    type Context = T::Context;

    fn spec(&self) -> &TransformerSpec {
        self.model.spec()
    }

    fn dtype(&self) -> DType {
        self.model.dtype()
    }

    fn contexts(&self, branches: &[&T::Conditions], timesteps: &[f32]) -> Vec<T::Context> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.model.contexts(branches, timesteps)
    }

    fn context_bytes(&self) -> usize {
        self.context_bytes.unwrap_or_else(|| self.model.context_bytes())
    }

    fn text_shape(&self, context: &T::Context) -> Option<[usize; 3]> {
        self.model.text_shape(context)
    }

    fn embed(&self, latents: Tokens, context: &T::Context) -> Hidden {
        self.model.embed(latents, context)
    }

    fn block(
        &self,
        index: usize,
        hidden: Hidden,
        context: &T::Context,
        attention: &mut dyn Attention,
    ) -> Hidden {
        self.model.block(index, hidden, context, attention)
    }

    fn finish(&self, hidden: Hidden, context: &T::Context) -> Tensor<3> {
        self.model.finish(hidden, context)
    }
}

/// A scheduler of `steps` steps.
fn flow_matching(steps: usize) -> Box<dyn Scheduler> {
    scheduler(&json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0 }), steps).unwrap()
}

/// A plan for one picture of `tokens` tokens with two branches of guidance.
fn plan(spec: &TransformerSpec, tokens: usize, steps: usize, mesh: Mesh) -> Plan {
    let branches = Branch::classifier_free(true);
    let work = Work { spec: spec.clone(), tokens, grain: 1, steps, branches, images: 1 };
    Plan::new(&ParallelConfig { mesh, ..ParallelConfig::default() }, &work).unwrap()
}

/// A component of the golden checkpoint `name`.
fn golden<T: Published>(name: &str) -> Component<T::Config> {
    open::<T>(&goldens().join(name).join(T::FOLDER))
}

fn open<T: Published>(folder: &Path) -> Component<T::Config> {
    let read = |config| T::Config::read(config);
    Component::open(folder, STEM, &options(), read, |_| DType::F32, T::load).unwrap()
}

/// Rows and columns of the pictures, in tokens.
const GRID: [usize; 2] = [5, 7];

/// Records of the ranks of a run.
#[derive(Clone, Default)]
struct Seen {
    layers: SharedLayers,
    weights: Arc<Mutex<Vec<Weights>>>,
    calls: Arc<AtomicUsize>,
}

/// The run of `plan` with a golden checkpoint, in which every rank's transformer is [observed](Observed).
fn job<T: Published>(
    component: &Component<T::Config>,
    conditions: [&T::Conditions; 2],
    (plan, residency, context_bytes): (Plan, Residency, Option<usize>),
    seen: &Seen,
) -> Job<Observed<T>>
where
    T::Conditions: Send + Sync,
{
    let spec = component.config.spec();
    let [rows, columns] = GRID;
    let noise = random("noise", [1, rows * columns, spec.channels * spec.patch * spec.patch]);
    let scheduler = flow_matching(plan.steps);
    let (component, seen) = (component.clone(), seen.clone());
    Job {
        plan,
        load: Box::new(move |share| {
            let weights = component.weights(&device()).of_share(share, component.config.all_placements());
            let weights = weights.sharing(&seen.layers).with_residency(residency);
            let model = T::load(&component.config, &weights)?;
            seen.weights.lock().unwrap().push(weights);
            let transformer = Observed { model, context_bytes, calls: seen.calls.clone() };
            Ok(Loaded { transformer, parameter_bytes: 0 })
        }),
        scheduler,
        guidance: vec![Guidance::classifier_free(conditions[0].clone(), conditions[1].clone(), 2.0)],
        noise: vec![Tokens { x: noise, positions: Positions::grid(rows, columns) }],
    }
}

/// Sixty steps of a golden checkpoint, at once and in three chunks, with layers that are kept and layers that are read
/// again, give the same bits. The steps themselves read nothing, except `dim` numbers a token from a table of
/// positions (`table`).
fn check_reading<T: Published>(checkpoint: &str, conditions: [&T::Conditions; 2], table: bool)
where
    T::Conditions: Send + Sync,
{
    let component = golden::<T>(checkpoint);
    let (spec, tokens) = (component.config.spec().clone(), GRID.iter().product());
    let mut expected = None;
    for residency in [Residency::Hold, Residency::Reread] {
        for (context_bytes, chunks) in [(None, 1), (Some(usize::MAX), 3)] {
            let (plan, seen) = (plan(&spec, tokens, 60, Mesh::default()), Seen::default());
            let job = job::<T>(&component, conditions, (plan, residency, context_bytes), &seen);
            let latents = run(job, &mut ()).unwrap_or_else(|error| panic!("{error}"));
            let latents = bits(&latents[0].x);
            let what = format!("{checkpoint}, {residency:?}, {chunks} chunks");
            assert_eq!(*expected.get_or_insert_with(|| latents.clone()), latents, "{what}");

            let calls = seen.calls.load(Ordering::Relaxed);
            assert_eq!(calls, 2 * chunks, "{what}");
            let weights = &seen.weights.lock().unwrap()[0];
            let (taken, loaded) = (weights.taken(), weights.loaded());
            assert!(taken.once > 0);
            let reads = if residency == Residency::Hold { 1 } else { calls as u64 };
            assert_eq!(loaded.once, reads * taken.once, "{what}");
            let table = if table { (4 * tokens * spec.dim()) as u64 } else { 0 };
            assert_eq!(loaded.steps, taken.steps + table, "{what}");
        }
    }
}

#[test]
fn neither_chunks_nor_residency_change_a_bit_and_steps_read_nothing() {
    let _alone = alone();
    let text = |name, features| random(name, [1, 6, features]);
    let pooled = |features| random("pooled", [1, features]);
    let [no, yes] =
        ["no", "yes"].map(|name| pixart::Conditions { text: text(name, 32), bias: None, size: None });
    check_reading::<PixArt>("pixart-alpha-256", [&no, &yes], false);
    let [no, yes] = ["no", "yes"].map(|name| sd3::Conditions { text: text(name, 32), pooled: pooled(28) });
    check_reading::<Sd3>("sd3-medium", [&no, &yes], true);
    let of = |name| flux::Conditions { text: text(name, 32), pooled: pooled(32), guidance: 3.5 };
    check_reading::<Flux>("flux-dev", [&of("no"), &of("yes")], false);
}

/// The bytes that `ranks` on `mesh` allocate when all have loaded their shares, and those that the plan predicts.
fn held<T: Published>(component: &Component<T::Config>, mesh: Mesh) -> [f64; 2] {
    let component = component.clone();
    let plan = plan(component.config.spec(), 64, 2, mesh);
    let sizes = Sizes {
        spec: component.config.spec().clone(),
        dtype: DType::F32,
        text_tokens: vec![0; 2],
        exchanges: component.config.exchanges(),
        frames: 1,
        levels: Vec::new(),
        rows: RowExchanges::default(),
    };
    let scales = component.scales(component.config.all_placements(), T::load);
    let planned = costs(&plan, &sizes, scales).unwrap();
    let planned = planned.iter().map(|cost| cost.added.parameters);
    let planned: u64 = planned.map(|ParameterBytes { steps, once }| steps + once).sum();
    let before = HEAP.allocated();
    let load = move |world: Comm| {
        let (rank, groups) = (world.rank(), Groups::new(&HostLink::new(world), &plan)?);
        let share = Share { blocks: plan.stage(rank), tensor: groups.tensor_share() };
        let placements = component.config.all_placements();
        component.load_share(&xdit_tests::device(), share, placements, Residency::Hold, T::load)
    };
    let ranks = run_ranks(mesh.size(), &LaunchOptions::default(), load);
    let ranks = ranks.unwrap_or_else(|error| panic!("{error}"));
    let held = HEAP.allocated() - before;
    drop(ranks);
    [held as f64, planned as f64]
}

/// A checkpoint in half precision is converted while it is loaded. Ranks share equal linear layers. Each rank has its
/// own copy of all other parameters, which are hardly any.
#[test]
fn ranks_of_a_process_hold_a_layer_once() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let model = SparsePixArt { heads: 4, blocks: 3, caption: 512, dtype: ("F16", 2) };
    model.write(dir.path(), STEM);
    let whole = 4.0 * model.parameters() as f64;
    let component = open::<PixArt>(dir.path());
    let start = HEAP.allocated();
    for (axes, most) in [
        (&[][..], 1.01),
        (&[(Axis::Ring, 4)], 1.03),
        (&[(Axis::Ulysses, 2), (Axis::Cfg, 2)], 1.03),
        (&[(Axis::Pipeline, 2), (Axis::Ring, 2)], 1.03),
        (&[(Axis::Tensor, 2), (Axis::Ring, 2)], 1.03),
        (&[(Axis::Tensor, 4)], 1.03),
    ] {
        let mesh = mesh(axes);
        let [held, planned] = held::<PixArt>(&component, mesh);
        println!("{mesh}: {:.3} of the model, {:.3} planned", held / whole, planned / whole);
        assert!(held > 0.98 * whole && held <= most * whole, "{mesh}: {held} of {whole}");
        assert!((held / planned - 1.0).abs() < 0.01, "{mesh}: {held} held, {planned} planned");
        let left = HEAP.allocated() as f64 - start as f64;
        assert!(left < 0.01 * whole, "{mesh}: {left} bytes stay when all ranks are gone");
    }
}

/// Convolutions are shared as well. If each of four ranks held its own, which are 0.4 of the model, they would have 2.2 of
/// it. The model is small, so what each rank's 600 tensors take beside their values shows.
#[test]
fn ranks_of_a_process_hold_a_convolution_once() {
    let _alone = alone();
    let component = golden::<UNet>("sdxl-turbo");
    let [_, whole] = held::<UNet>(&component, Mesh::default());
    for (axes, most) in [
        (&[][..], 1.05),
        (&[(Axis::Ring, 4)], 1.6),
        (&[(Axis::Cfg, 2), (Axis::Ulysses, 2)], 1.6),
        (&[(Axis::Tensor, 2), (Axis::Ring, 2)], 1.6),
    ] {
        let mesh = mesh(axes);
        let [held, planned] = held::<UNet>(&component, mesh);
        println!("{mesh}: {:.3} of the model, {:.3} planned", held / whole, planned / whole);
        assert!(held > 0.98 * whole && held <= most * whole, "{mesh}: {held} of {whole}");
        assert!(planned <= 1.05 * whole, "{mesh}: {planned} planned of {whole}");
    }
}

/// Along these axes, ranks wait for each other in every step, so no rank needs contexts that all others have finished.
#[test]
fn contexts_are_made_once_for_ranks_that_need_the_same() {
    let _alone = alone();
    let subject = Subject { steps: 60, text_tokens: vec![4, 4], ..Subject::new(Kind::Joint) };
    for (axes, stages, batch) in [
        (&[][..], 1, false),
        (&[(Axis::Ring, 3)], 1, false),
        (&[(Axis::Ulysses, 3)], 1, false),
        (&[(Axis::Tensor, 2)], 1, false),
        (&[(Axis::Cfg, 2), (Axis::Ring, 2)], 1, false),
        (&[(Axis::Pipeline, 2), (Axis::Ulysses, 2)], 2, false),
        (&[(Axis::Ring, 2), (Axis::Tensor, 2)], 1, false),
        (&[(Axis::Ring, 3)], 1, true),
        (&[(Axis::Pipeline, 2), (Axis::Ulysses, 2)], 2, true),
    ] {
        let guidance_batch = Some(batch);
        let config = ParallelConfig { mesh: mesh(axes), guidance_batch, ..ParallelConfig::default() };
        let plan = Plan::new(&config, &subject.work()).unwrap();
        let (calls, toy) = (Arc::new(AtomicUsize::new(0)), subject.job(plan));
        let (load, counted) = (toy.load, calls.clone());
        let job = Job {
            plan: toy.plan,
            load: Box::new(move |share| {
                let Loaded { transformer: model, parameter_bytes } = load(share)?;
                let transformer = Observed { model, context_bytes: Some(usize::MAX), calls: counted.clone() };
                Ok(Loaded { transformer, parameter_bytes })
            }),
            scheduler: toy.scheduler,
            guidance: toy.guidance,
            noise: toy.noise,
        };
        run(job, &mut ()).unwrap_or_else(|error| panic!("{error}"));
        let (passes, chunks) = (if batch { 1 } else { 2 }, 3);
        assert_eq!(calls.load(Ordering::Relaxed), passes * chunks * stages, "{}", config.mesh);
    }
}

/// A transformer that computes nothing and has large contexts.
struct Wide {
    spec: TransformerSpec,
    /// The peak of allocated memory while a block runs.
    most: Arc<AtomicUsize>,
}

const WIDE_BYTES: usize = 1 << 20;

impl Transformer for Wide {
    type Conditions = ();
    type Context = Tensor<1>;

    fn spec(&self) -> &TransformerSpec {
        &self.spec
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn contexts(&self, _: &[&()], timesteps: &[f32]) -> Vec<Tensor<1>> {
        timesteps.iter().map(|_| Tensor::zeros([WIDE_BYTES / 4], (&device(), DType::F32))).collect()
    }

    fn context_bytes(&self) -> usize {
        WIDE_BYTES
    }

    fn embed(&self, latents: Tokens, _: &Tensor<1>) -> Hidden {
        Hidden::new(latents, None)
    }

    fn block(&self, _: usize, hidden: Hidden, _: &Tensor<1>, _: &mut dyn Attention) -> Hidden {
        self.most.fetch_max(HEAP.allocated(), Ordering::Relaxed);
        hidden
    }

    fn finish(&self, hidden: Hidden, _: &Tensor<1>) -> Tensor<3> {
        hidden.image.x
    }
}

/// The peak memory of `ranks` in contexts of [`Wide`], and the plan's prediction.
fn wide(steps: usize, ranks: usize) -> [f64; 2] {
    let spec = Subject::new(Kind::Alone).spec;
    let plan = plan(&spec, 64, steps, mesh(&[(Axis::Ring, ranks)]));
    let sizes = Sizes {
        spec: spec.clone(),
        dtype: DType::F32,
        text_tokens: vec![0; 2],
        exchanges: vec![BlockExchanges { attentions: 0, image_sums: 0, text_sums: 0 }; spec.blocks],
        frames: 1,
        levels: Vec::new(),
        rows: RowExchanges::default(),
    };
    let weighed = Weighed { context_bytes: WIDE_BYTES, ..Weighed::default() };
    let planned =
        costs(&plan, &sizes, |_| Ok(weighed)).unwrap().iter().map(|cost| cost.added.contexts).sum::<u64>();
    let (most, before) = (Arc::new(AtomicUsize::new(0)), HEAP.allocated());
    let observed = most.clone();
    let job = Job {
        load: Box::new(move |_| {
            let transformer = Wide { spec: spec.clone(), most: observed.clone() };
            Ok(Loaded { transformer, parameter_bytes: 0 })
        }),
        scheduler: flow_matching(steps),
        guidance: vec![Guidance::classifier_free((), (), 2.0)],
        noise: vec![Tokens { x: random("noise", [1, 64, 3]), positions: Positions::grid(8, 8) }],
        plan,
    };
    run(job, &mut ()).unwrap_or_else(|error| panic!("{error}"));
    [(most.load(Ordering::Relaxed) - before) as f64, planned as f64]
}

#[test]
fn memory_does_not_grow_with_steps() {
    let _alone = alone();
    for (steps, ranks) in [(100, 1), (128, 1), (1000, 1), (100, 4)] {
        let [most, planned] = wide(steps, ranks);
        println!(
            "{steps} steps, {ranks} ranks: {:.1} MiB, {:.1} planned",
            most / 1048576.0,
            planned / 1048576.0
        );
        assert!(most <= 1.05 * 2.0 * 128.0 * 1048576.0, "{steps} steps on {ranks} ranks: {most} bytes");
        assert!(
            (most / planned - 1.0).abs() < 0.05,
            "{steps} steps on {ranks} ranks: {most} held, {planned} planned"
        );
    }
}
