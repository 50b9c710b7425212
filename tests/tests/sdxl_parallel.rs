//! Compares Stable Diffusion XL on many ranks with a single rank. Ranks have rows of the image; convolutions exchange
//! rows, group norms moments, and attention keys or heads.

use burn::tensor::{DType, Tensor};
use xdit_core::pipeline::{LoadOptions, Pipeline, Request};
use xdit_core::plan::ParallelConfig;
use xdit_core::plan::mesh::Axis::{self, Cfg, Data, Ring, Tensor as Tp, Ulysses};
use xdit_tests::on_ranks::{TOLERANCE, mesh};
use xdit_tests::verified::{Counts, add, check, model_of};
use xdit_tests::world::Reports;
use xdit_tests::{assert_close, device, goldens};

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

/// Levels have different numbers of heads and pixels, and rows are sent in addition to keys.
#[test]
fn ranks_send_and_keep_what_the_plan_says() {
    let mut pipeline = open();
    let methods = [
        vec![(Cfg, 2), (Tp, 2)],
        vec![(Ring, 3)],
        vec![(Ulysses, 2), (Tp, 2)],
        vec![(Cfg, 2), (Ring, 2), (Ulysses, 2)],
        vec![(Ring, 4), (Ulysses, 2)],
    ];
    // Columns that can be halved, and columns that cannot.
    for (degrees, width) in methods.iter().flat_map(|degrees| [(degrees, 64), (degrees, 56)]) {
        let parallel = ParallelConfig { mesh: mesh(degrees), ..ParallelConfig::default() };
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
            assert_eq!((report.peak_kv_bytes, cost.peak_kv_bytes), (0, 0), "{what}");
            for axis in Axis::ALL {
                let sent = report.traffic.of_label(axis.name()).sent_bytes;
                assert_eq!(sent, 3 * cost.step_bytes.get(&axis).unwrap_or(&0), "{axis:?}: {what}");
            }
            let rows = report.traffic.of_label("ringxulysses").sent_bytes;
            // At the end, the latents are gathered.
            let tokens = plan.tokens(&(0..1), plan.mesh.sequence_coordinate(report.rank));
            let gathered = 4 * 4 * tokens * (plan.mesh.sequence_degree() - 1);
            assert_eq!(rows, 3 * cost.row_bytes + gathered as u64, "rows: {what}");
            assert_eq!(rows > 0, plan.mesh.sequence_degree() > 1, "{what}");
        }
    }
}
