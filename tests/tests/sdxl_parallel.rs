//! Compares Stable Diffusion XL on many ranks with a single rank. Ranks have rows of the image; convolutions exchange
//! rows, group norms moments, and attention keys or heads.

use burn::tensor::{DType, Tensor};
use xdit_core::pipeline::{LoadOptions, MicroConditions, Pipeline, Request};
use xdit_core::plan::ParallelConfig;
use xdit_core::plan::mesh::Axis::{self, Cfg, Data, Ring, Tensor as Tp, Ulysses};
use xdit_tests::on_ranks::{BATCH_TOLERANCE, TOLERANCE, mesh};
use xdit_tests::verified::{Counts, add, check, model_of};
use xdit_tests::world::Reports;
use xdit_tests::{assert_close, device, goldens, relative_l2};

const CHECKPOINT: &str = "sdxl-base";

/// 36 × 7 latent pixels: nine pieces of four rows, which hardly anything divides evenly, and columns that cannot be
/// halved.
fn request() -> Request {
    Request {
        negative_prompts: vec!["blurry, low quality".into()],
        height: Some(288),
        width: Some(56),
        num_inference_steps: Some(3),
        guidance_rescale: 0.6,
        seed: 5,
        decode: false,
        ..Request::new("a photo of a cat, sitting on the red sofa")
    }
}

fn open() -> Box<dyn Pipeline> {
    xdit_models::open(&goldens().join(CHECKPOINT), &LoadOptions::new(device(), DType::F32)).unwrap()
}

fn latents(pipeline: &mut dyn Pipeline, degrees: &[(Axis, usize)], images: usize) -> Tensor<4> {
    let parallel = ParallelConfig { mesh: mesh(degrees), ..ParallelConfig::default() };
    let request = Request { parallel, images_per_prompt: images, ..request() };
    let made = pipeline.generate(&request, &mut ());
    made.unwrap_or_else(|error| panic!("{degrees:?}: {error}")).latents::<4>()
}

/// Meshes of up to 16 ranks for four heads.
fn meshes() -> Vec<Vec<(Axis, usize)>> {
    vec![
        vec![(Cfg, 2)],
        vec![(Data, 2)],
        vec![(Data, 3)],
        vec![(Ulysses, 2)],
        vec![(Ulysses, 3)],
        vec![(Ulysses, 4)],
        vec![(Ring, 2)],
        vec![(Ring, 3)],
        vec![(Ring, 4)],
        vec![(Ring, 5)],
        vec![(Ring, 8)],
        vec![(Ring, 9)],
        vec![(Tp, 2)],
        vec![(Tp, 3)],
        vec![(Tp, 4)],
        vec![(Ring, 2), (Ulysses, 2)],
        vec![(Ring, 2), (Ulysses, 3)],
        vec![(Ring, 3), (Ulysses, 2)],
        vec![(Ring, 3), (Ulysses, 3)],
        vec![(Ring, 2), (Ulysses, 4)],
        vec![(Ring, 4), (Ulysses, 2)],
        vec![(Cfg, 2), (Ulysses, 2)],
        vec![(Cfg, 2), (Ulysses, 4)],
        vec![(Cfg, 2), (Ring, 2)],
        vec![(Cfg, 2), (Ring, 3)],
        vec![(Cfg, 2), (Ring, 7)],
        vec![(Cfg, 2), (Tp, 2)],
        vec![(Cfg, 2), (Tp, 3)],
        vec![(Ulysses, 2), (Tp, 2)],
        vec![(Ring, 2), (Tp, 2)],
        vec![(Ring, 3), (Tp, 3)],
        vec![(Ring, 5), (Tp, 2)],
        vec![(Data, 2), (Cfg, 2)],
        vec![(Data, 2), (Ring, 2)],
        vec![(Data, 3), (Ulysses, 2)],
        vec![(Data, 2), (Tp, 2)],
        vec![(Cfg, 2), (Ring, 2), (Ulysses, 2)],
        vec![(Cfg, 2), (Ulysses, 2), (Tp, 2)],
        vec![(Cfg, 2), (Ring, 2), (Tp, 2)],
        vec![(Cfg, 2), (Ring, 4), (Ulysses, 2)],
        vec![(Ring, 2), (Ulysses, 2), (Tp, 2)],
        vec![(Data, 2), (Cfg, 2), (Ring, 2), (Ulysses, 2)],
        vec![(Data, 2), (Cfg, 2), (Ulysses, 2), (Tp, 2)],
    ]
}

#[test]
fn exact_methods_equal_serial() {
    let (mut pipeline, mut counts) = (open(), Counts::new());
    let serial = latents(&mut *pipeline, &[], 3);
    for degrees in meshes() {
        // Only meshes with data parallelism need several pictures.
        let images = if degrees.iter().any(|(axis, _)| *axis == Data) { 3 } else { 1 };
        let made = latents(&mut *pipeline, &degrees, images);
        assert_close(&format!("{degrees:?}"), &made, &serial.clone().narrow(0, 0, images), TOLERANCE);
        let methods = [(Cfg, "CFG"), (Data, "data"), (Ulysses, "Ulysses"), (Ring, "ring"), (Tp, "tensor")];
        for (axis, method) in methods {
            if degrees.iter().any(|(of, _)| *of == axis) {
                add(&mut counts, model_of(CHECKPOINT), method, 1);
            }
        }
    }
    check(&counts);
}

/// Both branches of guidance as one batch equal one after another. The negative branch has sizes of its own.
#[test]
fn one_batch_equals_its_branches() {
    let mut pipeline = open();
    let micro_conditions = MicroConditions {
        negative_original_size: Some([64, 96]),
        negative_target_size: Some([128, 80]),
        ..MicroConditions::default()
    };
    for (degrees, distrifusion) in [
        (vec![], false),
        (vec![(Ring, 3)], false),
        (vec![(Ulysses, 2), (Tp, 2)], false),
        (vec![(Ring, 2), (Ulysses, 2)], false),
        (vec![(Ring, 3)], true),
    ] {
        let mut made = |batch| {
            let parallel = ParallelConfig {
                mesh: mesh(&degrees),
                distrifusion,
                warmup_steps: 0,
                guidance_batch: Some(batch),
                ..ParallelConfig::default()
            };
            let guidance_rescale = if distrifusion { 0.0 } else { 0.6 };
            let request = Request { parallel, guidance_rescale, micro_conditions, ..request() };
            assert_eq!(
                pipeline.resolve(&request).unwrap().plan.passes_of(0).len(),
                if batch { 1 } else { 2 }
            );
            pipeline.generate(&request, &mut ()).unwrap().latents::<4>()
        };
        let (one_batch, branches) = (made(true), made(false));
        let tolerance = if degrees.is_empty() { BATCH_TOLERANCE } else { TOLERANCE };
        assert_close(&format!("{degrees:?}, {distrifusion}"), &one_batch, &branches, tolerance);
    }
}

/// DistriFusion on the ring axis equals a single rank with the same strips, and with all steps synchronous the whole
/// picture.
#[test]
fn distrifusion_equals_one_rank_with_its_strips() {
    let (mut pipeline, mut counts) = (open(), Counts::new());
    let mut latents = |degrees: &[(Axis, usize)], patches, warmup_steps| {
        let parallel = ParallelConfig {
            mesh: mesh(degrees),
            patches: Some(patches),
            warmup_steps,
            distrifusion: !degrees.is_empty() || patches > 1,
            ..ParallelConfig::default()
        };
        let request = Request { parallel, num_inference_steps: Some(4), guidance_rescale: 0.0, ..request() };
        let made = pipeline.generate(&request, &mut ());
        made.unwrap_or_else(|error| panic!("{degrees:?}: {error}")).latents::<4>()
    };
    let serial = latents(&[], 1, 0);
    for (strips, warmup_steps) in [(2, 0), (2, 1), (3, 0), (4, 1), (9, 0)] {
        let oracle = latents(&[], strips, warmup_steps);
        let apart = relative_l2(&oracle, &serial);
        println!("{strips} strips, {warmup_steps} warm-up steps: {apart:.1e} apart");
        assert!(apart > 1e-3, "old rows, moments and keys must show");
        assert!(apart < 0.5, "a strip that used nothing of the others would be further off");
        for others in [vec![], vec![(Cfg, 2)], vec![(Tp, 2)], vec![(Cfg, 2), (Tp, 2)]] {
            let degrees = [others, vec![(Ring, strips)]].concat();
            if mesh(&degrees).size() <= 16 {
                let made = latents(&degrees, 1, warmup_steps);
                assert_close(&format!("{degrees:?}, {warmup_steps}"), &made, &oracle, TOLERANCE);
                add(&mut counts, model_of(CHECKPOINT), "DistriFusion", 1);
            }
        }
    }
    assert_close("synchronous strips", &latents(&[], 3, 9), &serial, TOLERANCE);
    assert_close("synchronous ranks", &latents(&[(Ring, 3)], 1, 9), &serial, TOLERANCE);
    check(&counts);
}

/// Levels have different numbers of heads and pixels, and rows are sent in addition to keys.
#[test]
fn ranks_send_and_keep_what_the_plan_says() {
    let mut pipeline = open();
    let methods = [
        (vec![(Cfg, 2), (Tp, 2)], false),
        (vec![(Ring, 3)], false),
        (vec![(Ring, 3)], true),
        (vec![(Ulysses, 2), (Tp, 2)], false),
        (vec![(Cfg, 2), (Ring, 2), (Ulysses, 2)], false),
        (vec![(Ring, 4), (Ulysses, 2)], false),
    ];
    // Columns that can be halved, and columns that cannot.
    for ((degrees, distrifusion), width) in methods.iter().flat_map(|method| [(method, 64), (method, 56)]) {
        let parallel = ParallelConfig {
            mesh: mesh(degrees),
            warmup_steps: 0,
            distrifusion: *distrifusion,
            ..ParallelConfig::default()
        };
        // The last step of DistriFusion sends nothing for a next one.
        let steps = if *distrifusion { 2 } else { 3 };
        let request = Request { parallel, width: Some(width), guidance_rescale: 0.0, ..request() };
        let resolved = pipeline.resolve(&request).unwrap();
        let (plan, costs) = (&resolved.plan, pipeline.costs(&resolved).unwrap());
        let mut reports = Reports::default();
        pipeline.generate(&request, &mut reports).unwrap_or_else(|error| panic!("{degrees:?}: {error}"));
        assert_eq!(reports.ranks.len(), plan.mesh.size());
        for (report, cost) in reports.ranks.iter().zip(costs) {
            let what = format!("rank {} of {degrees:?}, {width} pixels wide", report.rank);
            let parameters = cost.share.parameters;
            assert_eq!(report.parameter_bytes, parameters.steps + parameters.once, "{what}");
            assert_eq!(report.peak_kv_bytes, cost.peak_kv_bytes, "{what}");
            assert_eq!(cost.peak_kv_bytes > 0, *distrifusion, "{what}");
            for axis in Axis::ALL {
                let sent = report.traffic.of_label(axis.name()).sent_bytes;
                // Strips exchange rows over the same link as keys.
                let rows = if *distrifusion && axis == Ring { cost.row_bytes } else { 0 };
                let planned = rows + cost.step_bytes.get(&axis).unwrap_or(&0);
                assert_eq!(sent, steps * planned, "{axis:?}: {what}");
            }
            let rows = report.traffic.of_label("ringxulysses").sent_bytes;
            // At the end, the latents are gathered.
            let tokens = plan.tokens(&(0..1), plan.mesh.sequence_coordinate(report.rank));
            let gathered = 4 * 4 * tokens * (plan.mesh.sequence_degree() - 1);
            let planned = if *distrifusion { 0 } else { steps * cost.row_bytes };
            assert_eq!(rows, planned + gathered as u64, "rows: {what}");
            assert_eq!(rows > 0, plan.mesh.sequence_degree() > 1, "{what}");
        }
    }
}
