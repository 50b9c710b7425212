//! PixArt on many ranks equals PixArt on one: serially, or with the same patches and warm-up.

use std::path::Path;

use burn::tensor::{DType, Tensor};
use xdit_core::parallel::mesh::{Axis, Mesh};
use xdit_core::parallel::plan::ParallelConfig;
use xdit_core::pipeline::{LoadOptions, Pipeline, Request};
use xdit_tests::{Case, assert_close, device, goldens, relative_l2};

/// Of final latents: other orders of summation, over all steps.
const TOLERANCE: f64 = 1e-5;

fn open(dir: &Path) -> Box<dyn Pipeline> {
    let options = LoadOptions { device: device(), dtype: DType::F32, variant: None };
    xdit_models::open(dir, &options).unwrap()
}

fn request() -> Request {
    Request {
        negative_prompt: "blurry, low quality".into(),
        height: Some(112),
        width: Some(80),
        num_inference_steps: Some(4),
        seed: 5,
        use_resolution_binning: false,
        decode: false,
        ..Request::new("a photo of a cat, sitting on the red sofa")
    }
}

fn latents(pipeline: &mut dyn Pipeline, request: &Request) -> Tensor<4> {
    pipeline.generate(request, &mut ()).unwrap_or_else(|error| panic!("{error}")).latents
}

fn mesh(degrees: &[(Axis, usize)]) -> Mesh {
    degrees.iter().fold(Mesh::default(), |mesh, &(axis, degree)| mesh.with(axis, degree))
}

use Axis::{Cfg, Data, Pipeline as Pp, Ring, Tensor as Tp, Ulysses};

/// Meshes of up to 16 ranks. 35 tokens and 4 heads: hardly anything divides.
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

/// Every mesh, with the image in one patch, against one rank: with and without micro-conditions, α and Σ.
#[test]
fn exact_methods_equal_serial() {
    for checkpoint in ["pixart-alpha-256", "pixart-alpha-1024", "pixart-sigma-512"] {
        let mut pipeline = open(&goldens().join(checkpoint));
        let serial = latents(&mut *pipeline, &Request { images_per_prompt: 3, ..request() });
        for mesh in meshes() {
            // Only meshes of data parallelism need several pictures.
            let images_per_prompt = if mesh.degree(Data) > 1 { 3 } else { 1 };
            let parallel = ParallelConfig { mesh, patches: Some(1), ..ParallelConfig::default() };
            let actual = latents(&mut *pipeline, &Request { images_per_prompt, parallel, ..request() });
            let expected = serial.clone().narrow(0, 0, images_per_prompt);
            assert_close(&format!("{checkpoint}, {mesh}"), &actual, &expected, TOLERANCE);
        }
    }
}

/// Every mesh, with several patches, against one rank with the same patches and warm-up.
#[test]
fn pipefusion_depends_on_patches_and_warmup_only() {
    for checkpoint in ["pixart-alpha-256", "pixart-sigma-512"] {
        pipefusion_on(checkpoint);
    }
}

fn pipefusion_on(checkpoint: &str) {
    let mut pipeline = open(&goldens().join(checkpoint));
    let with = |mesh, patches, warmup_steps| Request {
        parallel: ParallelConfig { mesh, patches: Some(patches), warmup_steps, ..ParallelConfig::default() },
        ..request()
    };
    let serial = latents(&mut *pipeline, &request());
    for (patches, warmup_steps) in [(2, 1), (3, 0), (4, 1), (4, 2)] {
        let oracle = latents(&mut *pipeline, &with(Mesh::default(), patches, warmup_steps));
        let stale = relative_l2(&oracle, &serial);
        println!("{patches} patches, {warmup_steps} warm-up steps: {stale:.1e} from serial");
        assert!(stale > 1e-4, "keys of an earlier step must show: they outweigh rounding a hundred times");
        for mesh in meshes().into_iter().filter(|mesh| mesh.degree(Data) == 1) {
            if mesh.sequence_degree() * patches > 35 {
                continue;
            }
            let actual = latents(&mut *pipeline, &with(mesh, patches, warmup_steps));
            assert_close(
                &format!("{checkpoint}, {mesh}, M = {patches}, W = {warmup_steps}"),
                &actual,
                &oracle,
                TOLERANCE,
            );
        }
    }
}

/// All steps synchronous: nothing is of an earlier step.
#[test]
fn pipefusion_with_all_steps_synchronous_equals_serial() {
    let mut pipeline = open(&goldens().join("pixart-alpha-256"));
    let serial = latents(&mut *pipeline, &request());
    let parallel = ParallelConfig {
        mesh: mesh(&[(Pp, 2)]),
        patches: Some(4),
        warmup_steps: 9,
        stage_blocks: Some(vec![1, 3]),
        ..ParallelConfig::default()
    };
    assert_close("pp 2", &latents(&mut *pipeline, &Request { parallel, ..request() }), &serial, TOLERANCE);
}

/// DistriFusion on the ring axis, against one rank that runs as many patches.
#[test]
fn distrifusion_equals_one_rank_with_its_patches() {
    let mut pipeline = open(&goldens().join("pixart-alpha-256"));
    let serial = latents(&mut *pipeline, &request());
    for (ranks, warmup_steps) in [(2, 0), (2, 1), (3, 0), (5, 1)] {
        let with = |mesh, patches| Request {
            parallel: ParallelConfig {
                mesh,
                patches: Some(patches),
                warmup_steps,
                distrifusion: true,
                ..ParallelConfig::default()
            },
            ..request()
        };
        let oracle = latents(&mut *pipeline, &with(Mesh::default(), ranks));
        let stale = relative_l2(&oracle, &serial);
        println!("{ranks} strips, {warmup_steps} warm-up steps: {stale:.1e} from serial");
        assert!(stale > 1e-4, "keys of the step before must show");
        let fusion = Request {
            parallel: ParallelConfig { patches: Some(ranks), warmup_steps, ..ParallelConfig::default() },
            ..request()
        };
        let pipefusion = latents(&mut *pipeline, &fusion);
        assert!(relative_l2(&oracle, &pipefusion) > 1e-4, "they are not PipeFusion's");
        for others in
            [vec![], vec![(Ulysses, 2)], vec![(Cfg, 2)], vec![(Tp, 2)], vec![(Cfg, 2), (Ulysses, 2)]]
        {
            let mesh = mesh(&others).with(Ring, ranks);
            let actual = latents(&mut *pipeline, &with(mesh, 1));
            assert_close(&format!("{mesh}, W = {warmup_steps}"), &actual, &oracle, TOLERANCE);
        }
    }
}

/// All steps of DistriFusion synchronous.
#[test]
fn distrifusion_with_all_steps_synchronous_equals_serial() {
    let mut pipeline = open(&goldens().join("pixart-alpha-256"));
    let serial = latents(&mut *pipeline, &request());
    let parallel = ParallelConfig {
        mesh: mesh(&[(Ring, 3)]),
        warmup_steps: 9,
        distrifusion: true,
        ..ParallelConfig::default()
    };
    assert_close("ring 3", &latents(&mut *pipeline, &Request { parallel, ..request() }), &serial, TOLERANCE);
}

/// What the real xDiT computes, where it is right.
#[test]
fn outside_reference() {
    let Some(shared) = xdit_tests::outside_reference() else { return };
    let case = Case::open(&shared.join("pixart-alpha-512.expected"));
    let mut pipeline = open(&shared.join("pixart-alpha-512"));
    let call = &case.json["call"];
    let request = Request {
        negative_prompt: call["negative_prompt"].as_str().unwrap().to_owned(),
        height: Some(128),
        width: Some(128),
        num_inference_steps: Some(6),
        guidance_scale: Some(4.5),
        seed: 7,
        use_resolution_binning: false,
        decode: false,
        ..Request::new(call["prompt"].as_str().unwrap())
    };
    for (name, mesh, patches) in [
        ("xdit_pp2_m4_w1", mesh(&[(Pp, 2)]), 4),
        ("xdit_pp4_m4_w1", mesh(&[(Pp, 4)]), 4),
        ("xdit_ulysses2", mesh(&[(Ulysses, 2)]), 1),
    ] {
        let parallel = ParallelConfig { mesh, patches: Some(patches), ..ParallelConfig::default() };
        let actual = latents(&mut *pipeline, &Request { parallel, ..request.clone() });
        assert_close(name, &actual, &case.tensor(name), 1e-4);
    }
}
