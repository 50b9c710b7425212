//! Compares the autoencoder on many ranks with the autoencoder on one.

use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData};
use xdit_comm::{Comm, LaunchOptions, RunError, Sim, run_ranks};
use xdit_core::Error;
use xdit_core::attention::Qkv;
use xdit_core::checkpoint::Checkpoint;
use xdit_core::config::Config;
use xdit_core::link::{HostLink, catch};
use xdit_core::methods::vae::SplitRows;
use xdit_core::noise::Generator;
use xdit_core::pipeline::{LoadOptions, Picture, Request};
use xdit_core::plan::ParallelConfig;
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::rows::{Rows, Whole};
use xdit_core::run::decode::split_rows;
use xdit_core::weights::Weights;
use xdit_kernels::{Affine, Conv2d, Moments};
use xdit_models::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use xdit_models::component::ModelIndex;
use xdit_tests::verified::{Counts, add, check, model_of};
use xdit_tests::{assert_close, device, goldens, relative_l2};

/// The tolerance, for other orders of summation through the whole decoder.
const TOLERANCE: f64 = 1e-5;

/// The third one has 16 latent channels, and no 1×1 convolutions around them. The last one decodes frames together.
const CHECKPOINTS: [&str; 4] = ["pixart-alpha-256", "pixart-sigma-512", "sd3-medium", "latte-temporal"];

/// The pictures of a batch: one, or a clip's frames.
fn batch(checkpoint: &str) -> usize {
    if checkpoint == "latte-temporal" { 3 } else { 1 }
}

/// The autoencoder of `checkpoint` and the channels of its latents.
fn autoencoder(checkpoint: &str) -> (Arc<AutoencoderKl>, usize) {
    let dir = goldens().join(checkpoint).join("vae");
    let class = &ModelIndex::read(&goldens().join(checkpoint)).unwrap().components["vae"];
    let config = Config::read(&dir.join("config.json")).unwrap();
    let config = AutoencoderKlConfig::of_class(class, config).unwrap();
    let checkpoint = Checkpoint::open(&dir, "diffusion_pytorch_model", None).unwrap();
    let vae = AutoencoderKl::load(&config, &Weights::new(checkpoint, &device(), DType::F32)).unwrap();
    (Arc::new(vae), config.latent_channels)
}

/// Noise of `shape` that is brighter at the bottom, so that parts of it have other moments than the whole.
fn image(shape: [usize; 4]) -> Tensor<4> {
    let mut values = Generator::from_seed(shape[2] as u64).randn(shape.iter().product());
    for (index, value) in values.iter_mut().enumerate() {
        *value += (index / shape[3] % shape[2]) as f32 / shape[2] as f32;
    }
    Tensor::from_data(TensorData::new(values, shape), (&device(), DType::F32))
}

/// The result of `work` for `image`, with some rows on each of at most `ranks` ranks. Only the first rank has the
/// image.
fn on_ranks<F>(ranks: usize, image: Tensor<4>, work: F) -> Result<Tensor<4>, RunError<Error>>
where
    F: Fn(Tensor<4>, &dyn Rows) -> Tensor<4> + Send + Sync + 'static,
{
    let shape = image.dims();
    let rank = move |comm: Comm| {
        let link = HostLink::new(comm);
        let image = (link.rank() == 0).then(|| image.clone());
        catch(|| Ok(split_rows(&link, image, shape, &device(), &work)))
    };
    let images = run_ranks(ranks.min(shape[2]), &LaunchOptions::default(), rank)?;
    let [image] = <[_; 1]>::try_from(images.into_iter().flatten().collect::<Vec<_>>()).unwrap();
    Ok(image)
}

fn decode(vae: &Arc<AutoencoderKl>, ranks: usize, z: &Tensor<4>) -> Tensor<4> {
    let vae = vae.clone();
    on_ranks(ranks, z.clone(), move |z, rows| vae.decode_rows(z, rows)).unwrap()
}

fn bits(x: &Tensor<4>) -> Vec<u32> {
    x.to_data().try_to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn decoding_equals_serial() {
    for checkpoint in CHECKPOINTS {
        let (vae, channels) = autoencoder(checkpoint);
        for height in (1..=9).chain([13]) {
            let z = image([batch(checkpoint), channels, height, 3 + height % 4]);
            let serial = vae.decode(z.clone());
            assert_eq!(bits(&decode(&vae, 1, &z)), bits(&serial), "one rank computes what no ranks compute");
            for ranks in 2..=8 {
                let what = format!("{checkpoint}: {height} rows on {ranks} ranks");
                let parallel = decode(&vae, ranks, &z);
                assert_close(&what, &parallel, &serial, TOLERANCE);
                assert_eq!(bits(&decode(&vae, ranks, &z)), bits(&parallel), "{what}: again");
            }
        }
    }
}

/// Several images at once, large enough for all algorithms of the kernels.
#[test]
fn a_batch_equals_serial() {
    let (vae, channels) = autoencoder(CHECKPOINTS[0]);
    let z = image([2, channels, 21, 30]);
    let serial = vae.decode(z.clone());
    for ranks in [2, 3, 5] {
        assert_close(&format!("{ranks} ranks"), &decode(&vae, ranks, &z), &serial, TOLERANCE);
    }
}

/// The result of `work` for `image`, with `shares` of the rows, over a network that delays and reorders messages by
/// `seed`.
fn simulated<F>(seed: u64, shares: Vec<usize>, image: Tensor<4>, work: F) -> Tensor<4>
where
    F: Fn(Tensor<4>, &dyn Rows) -> Tensor<4> + Send + Sync + 'static,
{
    let ranks = shares.len();
    let rank = move |comm: Comm| {
        let (start, own) = (shares[..comm.rank()].iter().sum(), shares[comm.rank()]);
        let rows = SplitRows::new(HostLink::new(comm), shares.clone());
        catch(|| Ok(work(image.clone().narrow(2, start, own), &rows)))
    };
    let parts = run_ranks(ranks, &LaunchOptions::default().sim(Sim::new(seed)), rank);
    Tensor::cat(parts.unwrap_or_else(|error| panic!("seed {seed}: {error}")), 2)
}

#[test]
fn neither_uneven_shares_nor_delays_matter() {
    let (vae, channels) = autoencoder(CHECKPOINTS[1]);
    let z = image([1, channels, 12, 5]);
    let serial = vae.decode(z.clone());
    for shares in [vec![1, 11], vec![11, 1], vec![1, 1, 10], vec![7, 1, 4], vec![2, 5, 1, 1, 3]] {
        let run = |seed| {
            let vae = vae.clone();
            simulated(seed, shares.clone(), z.clone(), move |z, rows| vae.decode_rows(z, rows))
        };
        let first = run(0);
        assert_close(&format!("{shares:?}"), &first, &serial, TOLERANCE);
        for seed in 1..4 {
            assert_eq!(bits(&run(seed)), bits(&first), "{shares:?}, seed {seed}");
        }
    }
}

/// Encoding uses the same seam. Each share is a multiple of the rows that become one row of the latents.
#[test]
fn encoding_equals_serial() {
    for checkpoint in CHECKPOINTS {
        let (vae, _) = autoencoder(checkpoint);
        let picture = image([1, 3, 72, 40]);
        let serial = vae.encode(picture.clone());
        for shares in [vec![72], vec![40, 32], vec![8, 48, 16], vec![8; 9]] {
            let (what, vae) = (format!("{checkpoint}: {shares:?}"), vae.clone());
            let parallel = simulated(0, shares, picture.clone(), move |x, rows| vae.encode_rows(x, rows));
            assert_close(&what, &parallel, &serial, TOLERANCE);
        }
    }
}

/// A step that a rank wrongly does without the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alone {
    Conv,
    Moments,
    Attend,
}

struct Mutant<'a> {
    rows: &'a dyn Rows,
    alone: Alone,
}

impl Mutant<'_> {
    fn rows(&self, part: Alone) -> &dyn Rows {
        if self.alone == part { &Whole } else { self.rows }
    }
}

impl Rows for Mutant<'_> {
    fn conv(
        &self,
        conv: &Conv2d,
        x: Tensor<4>,
        norm: Option<&Affine>,
        residual: Option<Tensor<4>>,
    ) -> Tensor<4> {
        self.rows(Alone::Conv).conv(conv, x, norm, residual)
    }

    fn moments(&self, x: Tensor<4>, groups: usize) -> Moments {
        self.rows(Alone::Moments).moments(x, groups)
    }

    fn attend(&self, pixels: Qkv) -> Tensor<4> {
        self.rows(Alone::Attend).attend(pixels)
    }
}

/// The tests would detect a missing part of the seam: its effect is at least a hundred times the tolerance.
#[test]
fn what_is_not_shared_shows() {
    for checkpoint in CHECKPOINTS {
        let (vae, channels) = autoencoder(checkpoint);
        let z = image([batch(checkpoint), channels, 9, 6]);
        let serial = vae.decode(z.clone());
        for alone in [Alone::Conv, Alone::Moments, Alone::Attend] {
            let vae = vae.clone();
            let wrong =
                on_ranks(2, z.clone(), move |z, rows| vae.decode_rows(z, &Mutant { rows, alone })).unwrap();
            let error = relative_l2(&wrong, &serial);
            println!("{checkpoint}: {alone:?} alone is off by {error:.1e}");
            assert!(error > 1e-3, "{checkpoint}: {alone:?} alone is off by {error:.1e} only");
        }
    }
}

/// The other ranks wait for the rows of a failed rank, and are notified.
#[test]
fn a_failing_rank_ends_all() {
    let (vae, channels) = autoencoder(CHECKPOINTS[0]);
    let z = image([1, channels, 7, 4]);
    let error = on_ranks(3, z, move |z, rows| {
        assert_ne!(z.dims()[2], 3, "the first of three ranks has a row more");
        vae.decode_rows(z, rows)
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("rank 0 panicked") && error.contains("a row more"), "{error}");
}

/// From prompt to pixels.
#[test]
fn pictures_equal_serial() {
    let mut counts = Counts::new();
    for checkpoint in [
        "pixart-alpha-256",
        "pixart-sigma-512",
        "sd35-medium",
        "flux-dev",
        "dit-256",
        "hunyuan-11",
        "latte",
        "latte-temporal",
        "sdxl-base",
    ] {
        pictures_of(checkpoint, &mut counts);
    }
    check(&counts);
}

fn pictures_of(checkpoint: &str, counts: &mut Counts) {
    let options = LoadOptions::new(device(), DType::F32);
    let mut pipeline = xdit_models::open(&goldens().join(checkpoint), &options).unwrap();
    let mut pictures = |mesh, parallel_vae| -> Vec<Picture> {
        let is_dit = checkpoint == "dit-256";
        let request = Request {
            // A UNet cuts whole pieces of 32 rows of pixels.
            height: (!is_dit).then_some(if checkpoint == "sdxl-base" { 96 } else { 112 }),
            width: (!is_dit).then_some(80),
            num_inference_steps: Some(2),
            use_resolution_binning: false,
            true_cfg_scale: (checkpoint == "flux-dev").then_some(2.0),
            negative_prompts: if checkpoint == "flux-dev" { vec!["blurry".to_owned()] } else { Vec::new() },
            images_per_prompt: 2,
            parallel: ParallelConfig { mesh, patches: Some(1), parallel_vae, ..ParallelConfig::default() },
            ..Request::new(if is_dit { "207" } else { "a photo of a cat, sitting on the red sofa" })
        };
        pipeline.generate(&request, &mut ()).unwrap().pictures
    };
    let serial = pictures(Mesh::default(), false);
    assert_eq!(pictures(Mesh::default(), true), serial, "one rank");
    let mesh = Mesh::default().with(Axis::Cfg, 2);
    for mesh in [mesh, mesh.with(Axis::Ulysses, 2), mesh.with(Axis::Data, 2).with(Axis::Ring, 2)] {
        for (parallel, serial) in pictures(mesh, true).iter().zip(&serial) {
            assert_eq!([parallel.height, parallel.width], [serial.height, serial.width]);
            let apart = |(a, b): (&u8, &u8)| a.abs_diff(*b);
            let worst = parallel.rgb.iter().zip(&serial.rgb).map(apart).max().unwrap();
            assert!(worst <= 1, "{checkpoint}, {mesh}: a pixel is off by {worst} of 255");
        }
        add(counts, model_of(checkpoint), "parallel VAE", 1);
    }
}
