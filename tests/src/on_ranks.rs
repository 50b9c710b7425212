//! Compares a checkpoint on many ranks with a single rank: serially, or with the same patches and warm-up.

use burn::tensor::{DType, Tensor};
use xdit_core::pipeline::{LoadOptions, Pipeline, Request};
use xdit_core::plan::ParallelConfig;
use xdit_core::plan::mesh::Axis::{Cfg, Data, Pipeline as Pp, Ring, Tensor as Tp, Ulysses};
use xdit_core::plan::mesh::{Axis, Mesh};

use crate::verified::{self, Counts, add, model_of};
use crate::{assert_close, device, goldens, relative_l2};

/// The tolerance of the final latents, for other orders of summation over all steps.
pub const TOLERANCE: f64 = 1e-5;

/// The tolerance for the branches of guidance as one batch on a single rank. Sums change their order only in layers of
/// short texts.
pub const BATCH_TOLERANCE: f64 = 1e-6;

/// The minimum effect of stale keys, about a hundred times that of rounding.
const VISIBLE: f64 = 1e-4;

/// The axes of exact methods, with the names of the methods in the list for users.
const EXACT: [(Axis, &str); 5] =
    [(Cfg, "CFG"), (Data, "data"), (Ulysses, "Ulysses"), (Ring, "ring"), (Tp, "tensor")];

/// The mesh with these degrees.
pub fn mesh(degrees: &[(Axis, usize)]) -> Mesh {
    degrees.iter().fold(Mesh::default(), |mesh, &(axis, degree)| mesh.with(axis, degree))
}

/// Meshes of up to 16 ranks for at least 4 heads, 4 blocks and 35 tokens. Hardly anything divides evenly.
fn meshes() -> Vec<Mesh> {
    [
        vec![(Cfg, 2)],
        vec![(Ulysses, 2)],
        vec![(Ulysses, 3)],
        vec![(Ulysses, 4)],
        vec![(Ring, 2)],
        vec![(Ring, 3)],
        vec![(Ring, 5)],
        vec![(Ring, 8)],
        vec![(Tp, 2)],
        vec![(Tp, 3)],
        vec![(Tp, 4)],
        vec![(Pp, 2)],
        vec![(Pp, 3)],
        vec![(Pp, 4)],
        vec![(Data, 2)],
        vec![(Ring, 2), (Ulysses, 2)],
        vec![(Ring, 2), (Ulysses, 3)],
        vec![(Ring, 3), (Ulysses, 2)],
        vec![(Cfg, 2), (Ulysses, 2)],
        vec![(Cfg, 2), (Ring, 2)],
        vec![(Cfg, 2), (Tp, 2)],
        vec![(Cfg, 2), (Pp, 2)],
        vec![(Pp, 2), (Ulysses, 2)],
        vec![(Pp, 2), (Ring, 2)],
        vec![(Pp, 3), (Ring, 2)],
        vec![(Pp, 2), (Tp, 2)],
        vec![(Ulysses, 2), (Tp, 2)],
        vec![(Ring, 2), (Tp, 2)],
        vec![(Ring, 3), (Tp, 3)],
        vec![(Data, 2), (Cfg, 2)],
        vec![(Data, 2), (Pp, 2)],
        vec![(Data, 3), (Ulysses, 2)],
        vec![(Cfg, 2), (Pp, 2), (Ulysses, 2)],
        vec![(Cfg, 2), (Pp, 2), (Ring, 2)],
        vec![(Cfg, 2), (Ring, 2), (Ulysses, 2)],
        vec![(Pp, 2), (Ring, 2), (Ulysses, 2)],
        vec![(Pp, 2), (Ulysses, 2), (Tp, 2)],
        vec![(Data, 2), (Cfg, 2), (Pp, 2), (Ring, 2)],
        vec![(Cfg, 2), (Pp, 2), (Ring, 2), (Ulysses, 2)],
        vec![(Data, 2), (Cfg, 2), (Ulysses, 2), (Tp, 2)],
        vec![(Cfg, 2), (Pp, 4), (Tp, 2)],
    ]
    .iter()
    .map(|degrees| mesh(degrees))
    .collect()
}

/// Runs `compare` on each of `subjects`, and checks the numbers of comparisons against `tests/verified.json`.
pub fn verify(subjects: impl IntoIterator<Item = OnRanks>, compare: impl Fn(&mut OnRanks)) {
    let mut counts = Counts::new();
    for mut subject in subjects {
        compare(&mut subject);
        subject.add_to(&mut counts);
    }
    verified::check(&counts);
}

/// A checkpoint and a request to it.
pub struct OnRanks {
    name: String,
    pipeline: Box<dyn Pipeline>,
    request: Request,
    /// Whether the request has a negative branch.
    guided: bool,
    model: &'static str,
    /// The numbers of comparisons so far.
    counts: Counts,
}

impl OnRanks {
    /// Opens `checkpoint`, for a `request` of 35 tokens.
    pub fn open(checkpoint: &str, request: &Request, guided: bool) -> Self {
        let options = LoadOptions::new(device(), DType::F32);
        let pipeline = xdit_models::open(&goldens().join(checkpoint), &options).unwrap();
        let request = Request { decode: false, ..request.clone() };
        Self {
            name: checkpoint.into(),
            pipeline,
            request,
            guided,
            model: model_of(checkpoint),
            counts: Counts::new(),
        }
    }

    /// Adds the numbers of comparisons so far to `counts`.
    pub fn add_to(&self, counts: &mut Counts) {
        for (model, methods) in &self.counts {
            methods.iter().for_each(|(method, count)| add(counts, model, method, *count));
        }
    }

    fn count(&mut self, method: &str) {
        add(&mut self.counts, self.model, method, 1);
    }

    /// The final latents of `images` pictures, with one row for each.
    pub fn latents(&mut self, parallel: ParallelConfig, images: usize) -> Tensor<2> {
        let request = Request { parallel, images_per_prompt: images, ..self.request.clone() };
        let made = self.pipeline.generate(&request, &mut ());
        let made = made.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        match self.pipeline.resolve(&request).expect("it has run").frames {
            Some(_) => made.latents::<5>().flatten(1, 4),
            None => made.latents::<4>().flatten(1, 3),
        }
    }

    fn meshes(&self) -> Vec<Mesh> {
        meshes().into_iter().filter(|mesh| self.guided || mesh.degree(Cfg) == 1).collect()
    }

    fn check(&mut self, parallel: ParallelConfig, expected: &Tensor<2>) {
        let what = format!(
            "{}, {}, {:?} patches, {} warm-up steps",
            self.name, parallel.mesh, parallel.patches, parallel.warmup_steps
        );
        let images = expected.dims()[0];
        assert_close(&what, &self.latents(parallel, images), expected, TOLERANCE);
    }

    /// Compares both branches of guidance as one batch with one after another, on a single rank and with each method.
    pub fn one_batch_equals_its_branches(&mut self) {
        // The contexts of so many steps are rows enough: linear layers sum eight rows or fewer in another order.
        self.request.num_inference_steps = Some(9);
        let plain = |degrees: &[(Axis, usize)]| ParallelConfig {
            mesh: mesh(degrees),
            patches: Some(1),
            warmup_steps: 0,
            ..ParallelConfig::default()
        };
        for parallel in [
            plain(&[]),
            plain(&[(Ulysses, 2), (Tp, 2)]),
            plain(&[(Ring, 3)]),
            ParallelConfig { patches: Some(3), ..plain(&[(Pp, 3)]) },
            ParallelConfig { patches: Some(2), ..plain(&[(Pp, 2), (Ring, 2), (Ulysses, 2)]) },
            ParallelConfig { distrifusion: true, ..plain(&[(Ring, 2)]) },
        ] {
            let batched = ParallelConfig { guidance_batch: Some(true), ..parallel.clone() };
            let request = Request { parallel: batched.clone(), ..self.request.clone() };
            let plan =
                self.pipeline.resolve(&request).unwrap_or_else(|error| panic!("{}: {error}", self.name)).plan;
            assert!(plan.passes_of(0).contains(&(0..2)), "{}: no batch in {plan}", self.name);
            let what = format!("{}, both branches as one batch, {}", self.name, parallel.mesh);
            let ranks = parallel.mesh.size();
            let branches = self.latents(parallel, 1);
            let tolerance = if ranks == 1 { BATCH_TOLERANCE } else { TOLERANCE };
            assert_close(&what, &self.latents(batched, 1), &branches, tolerance);
        }
    }

    /// Compares every mesh, with the image in one patch, with a single rank. Returns the number of meshes.
    pub fn exact_methods_equal_serial(&mut self) -> usize {
        let serial = self.latents(ParallelConfig::default(), 3);
        let meshes = self.meshes();
        for &mesh in &meshes {
            // Only meshes with data parallelism need several pictures.
            let images = if mesh.degree(Data) > 1 { 3 } else { 1 };
            let parallel = ParallelConfig { mesh, patches: Some(1), ..ParallelConfig::default() };
            self.check(parallel, &serial.clone().narrow(0, 0, images));
            for (axis, method) in EXACT {
                if mesh.degree(axis) > 1 {
                    self.count(method);
                }
            }
        }
        meshes.len()
    }

    /// Compares every mesh, for several numbers of patches and warm-up steps, with a single rank that uses the same
    /// numbers.
    pub fn pipefusion_depends_on_patches_and_warmup_only(&mut self) {
        let serial = self.latents(ParallelConfig::default(), 1);
        for (patches, warmup_steps) in [(2, 1), (3, 0), (4, 1), (4, 2)] {
            let with = |mesh| ParallelConfig {
                mesh,
                patches: Some(patches),
                warmup_steps,
                ..ParallelConfig::default()
            };
            let oracle = self.latents(with(Mesh::default()), 1);
            self.must_differ(&oracle, &serial, &format!("{patches} patches, {warmup_steps} warm-up steps"));
            for mesh in self.meshes() {
                if mesh.degree(Data) == 1 && mesh.sequence_degree() * patches <= 35 {
                    self.check(with(mesh), &oracle);
                    self.count("PipeFusion");
                }
            }
        }
    }

    /// Compares uneven stages with a single rank. All steps are synchronous, so no keys are stale.
    pub fn synchronous_pipefusion_equals_serial(&mut self, stage_blocks: Vec<usize>) {
        let serial = self.latents(ParallelConfig::default(), 1);
        let parallel = ParallelConfig {
            mesh: mesh(&[(Pp, stage_blocks.len())]),
            patches: Some(4),
            warmup_steps: 9,
            stage_blocks: Some(stage_blocks),
            ..ParallelConfig::default()
        };
        self.check(parallel, &serial);
    }

    /// Compares DistriFusion on the ring axis with a single rank that uses the same patches, and checks that it
    /// differs from PipeFusion. With all steps synchronous, it must equal a single rank without patches.
    pub fn distrifusion_equals_one_rank_with_its_patches(&mut self) {
        let serial = self.latents(ParallelConfig::default(), 1);
        let with = |mesh, patches, warmup_steps| ParallelConfig {
            mesh,
            patches: Some(patches),
            warmup_steps,
            distrifusion: true,
            ..ParallelConfig::default()
        };
        for (ranks, warmup_steps) in [(2, 0), (2, 1), (3, 0), (5, 1)] {
            let oracle = self.latents(with(Mesh::default(), ranks, warmup_steps), 1);
            self.must_differ(&oracle, &serial, &format!("{ranks} strips, {warmup_steps} warm-up steps"));
            let pipefusion =
                ParallelConfig { distrifusion: false, ..with(Mesh::default(), ranks, warmup_steps) };
            let pipefusion = self.latents(pipefusion, 1);
            self.must_differ(&oracle, &pipefusion, "DistriFusion and PipeFusion");
            for others in
                [vec![], vec![(Ulysses, 2)], vec![(Cfg, 2)], vec![(Tp, 2)], vec![(Cfg, 2), (Ulysses, 2)]]
            {
                let mesh = mesh(&others).with(Ring, ranks);
                if self.guided || mesh.degree(Cfg) == 1 {
                    self.check(with(mesh, 1, warmup_steps), &oracle);
                    self.count("DistriFusion");
                }
            }
        }
        self.check(with(mesh(&[(Ring, 3)]), 1, 9), &serial);
    }

    fn must_differ(&self, one: &Tensor<2>, other: &Tensor<2>, what: &str) {
        let distance = relative_l2(one, other);
        println!("{}, {what}: {distance:.1e} apart", self.name);
        assert!(distance > VISIBLE, "keys of an earlier step must show");
    }
}
