//! Compares the bytes that a plan predicts for each rank with those that it sends and keeps, and checks the times of
//! ranks.

use burn::tensor::DType;
use xdit_core::pipeline::{LoadOptions, Request};
use xdit_core::plan::cost::{BlockExchanges, RowExchanges, Sent, Sizes, costs, peak_kv_bytes, sent_bytes};
use xdit_core::plan::guidance::{Branch, Guidance};
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::plan::schedule::schedule;
use xdit_core::plan::{ParallelConfig, Plan, Work};
use xdit_core::run::record::{Activity, RankReport};
use xdit_core::tokens::{Positions, Tokens};
use xdit_core::weights::Residency;
use xdit_models::component::Component;
use xdit_models::dit::{self, Dit};
use xdit_models::flux::{self, Flux};
use xdit_models::hunyuan::{self, Hunyuan};
use xdit_models::latent_diffusion::{Published, TransformerConfig};
use xdit_models::latte::Latte;
use xdit_models::pixart::{self, PixArt};
use xdit_models::sd3::{self, Sd3};
use xdit_models::sharding::Sharded;
use xdit_tests::toy::{Kind, Subject, random};
use xdit_tests::world::{Job, Reports, run};
use xdit_tests::{device, goldens};

use Axis::{Cfg, Pipeline, Ring, Tensor, Ulysses};

fn sizes(subject: &Subject) -> Sizes {
    let blocks = subject.spec.blocks;
    let (joint, image_sums, text_sums) = match subject.kind {
        Kind::Alone | Kind::UShaped | Kind::Clip => (0, 2, 0),
        Kind::Cross => (0, 3, 0),
        Kind::Joint => (1, 2, 2),
    };
    let mut exchanges = vec![BlockExchanges { attentions: 1, image_sums, text_sums }; blocks];
    if subject.kind == Kind::Clip {
        // Attention within places needs no other rank.
        exchanges.iter_mut().skip(1).step_by(2).for_each(|block| block.attentions = 0);
    }
    // The last block's text is not used.
    exchanges[blocks - 1].text_sums = 0;
    let skipping = subject.text_tokens.last().filter(|_| subject.skipping.is_some());
    let texts = subject.text_tokens.iter().chain(skipping);
    Sizes {
        spec: subject.spec.clone(),
        dtype: DType::F32,
        text_tokens: texts.map(|tokens| joint * tokens).collect(),
        exchanges,
        frames: subject.frames,
        levels: Vec::new(),
        rows: RowExchanges::default(),
    }
}

/// The method of a run: degrees, patches, warm-up steps, and whether it is DistriFusion.
type Method = (&'static [(Axis, usize)], usize, usize, bool);

const METHODS: [Method; 16] = [
    (&[(Ulysses, 2)], 1, 1, false),
    (&[(Ulysses, 3)], 1, 1, false),
    (&[(Ring, 3)], 1, 1, false),
    (&[(Pipeline, 3)], 4, 1, false),
    (&[(Pipeline, 2)], 3, 0, false),
    (&[(Tensor, 3)], 1, 1, false),
    (&[(Cfg, 2)], 1, 1, false),
    (&[(Ring, 3)], 1, 0, true),
    (&[(Ring, 2)], 1, 1, true),
    (&[], 4, 0, true),
    (&[], 4, 0, false),
    // Hybrids.
    (&[(Pipeline, 2), (Ulysses, 2)], 3, 0, false),
    (&[(Ring, 2), (Ulysses, 2)], 1, 1, false),
    (&[(Cfg, 2), (Pipeline, 2), (Ring, 2)], 2, 1, false),
    (&[(Ring, 2), (Ulysses, 2), (Tensor, 2)], 1, 0, true),
    (&[(Pipeline, 2), (Ring, 2), (Tensor, 2)], 3, 0, false),
];

fn plan(subject: &Subject, method: Method) -> Plan {
    planned(method, &subject.work())
}

fn planned((degrees, patches, warmup_steps, distrifusion): Method, work: &Work) -> Plan {
    let mesh = degrees.iter().fold(Mesh::default(), |mesh, &(axis, degree)| mesh.with(axis, degree));
    let config =
        ParallelConfig { mesh, patches: Some(patches), warmup_steps, distrifusion, ..Default::default() };
    Plan::new(&config, work).unwrap_or_else(|error| panic!("{mesh}: {error}"))
}

fn reports(subject: &Subject, plan: &Plan, details: bool) -> Vec<RankReport> {
    let mut reports = Reports { details, ..Reports::default() };
    run(subject.job(plan.clone()), &mut reports).unwrap_or_else(|error| panic!("{plan}{error}"));
    assert_eq!(reports.ranks.len(), plan.mesh.size(), "each rank reports once");
    reports.ranks
}

#[test]
fn ranks_send_and_keep_what_the_plan_says() {
    let kinds = [Kind::Alone, Kind::Cross, Kind::Joint, Kind::UShaped, Kind::Clip];
    let mut subjects = kinds.map(Subject::new).to_vec();
    // Makes the last step not the only asynchronous one.
    subjects.iter_mut().for_each(|subject| subject.steps = 4);
    subjects[3].spec.heads = 4;
    for steps in [0..1, 1..2, 1..3, 0..4, 3..4] {
        let skipping = Some(Branch { steps, skip_layers: vec![0, 3] });
        subjects.push(Subject { skipping, ..subjects[2].clone() });
    }
    // Texts of one length, so that both branches can be one batch.
    subjects.push(Subject { text_tokens: vec![4, 4], ..subjects[7].clone() });
    let (mut moved, mut kept) = (Sent::new(), 0);
    for subject in &subjects {
        for method in METHODS {
            let guidance_batch = subject.text_tokens == [4, 4];
            let plan = Plan { guidance_batch, ..plan(subject, method) };
            for report in reports(subject, &plan, false) {
                let mut planned = Sent::new();
                for (axis, bytes) in sent_bytes(&plan, &sizes(subject), report.rank).into_iter().flatten() {
                    *planned.entry(axis).or_default() += bytes;
                }
                let what = format!("{:?}, rank {} of {plan}", subject.kind, report.rank);
                for axis in Axis::ALL {
                    let sent = report.traffic.of_label(axis.name()).sent_bytes;
                    assert_eq!(sent, planned.remove(&axis).unwrap_or(0), "{axis:?}: {what}");
                    *moved.entry(axis).or_default() += sent;
                }
                let kv = peak_kv_bytes(&plan, &sizes(subject), report.rank);
                assert_eq!(report.peak_kv_bytes, kv, "keys and values: {what}");
                kept += kv;
            }
        }
    }
    moved.retain(|_, bytes| *bytes > 0);
    assert_eq!(moved.keys().copied().collect::<Vec<_>>(), [Cfg, Pipeline, Ring, Ulysses, Tensor]);
    assert!(kept > 0);
}

/// The comparison above would detect mistakes in the sizes.
#[test]
fn each_step_counts() {
    let subject = Subject::new(Kind::Joint);
    let plan = plan(&subject, (&[(Pipeline, 2), (Ulysses, 2)], 3, 1, false));
    let mut fewer = sizes(&subject);
    fewer.text_tokens[0] -= 1;
    for rank in 0..4 {
        let (all, fewer) = (sent_bytes(&plan, &sizes(&subject), rank), sent_bytes(&plan, &fewer, rank));
        assert_eq!(all.len(), subject.steps);
        for (all, fewer) in all.iter().zip(&fewer) {
            assert!(all[&Ulysses] > fewer[&Ulysses], "one token of the text less is less to send");
            assert_eq!(all[&Pipeline] > fewer[&Pipeline], rank < 2, "between stages, it goes forward only");
        }
        assert!(
            peak_kv_bytes(&plan, &sizes(&subject), rank) > 0,
            "patches whose turn has not come are remembered"
        );
    }
}

#[test]
fn every_action_is_taken_down_and_holds_its_waits() {
    let subject = Subject::new(Kind::Joint);
    for method in METHODS {
        let plan = plan(&subject, method);
        for report in reports(&subject, &plan, true) {
            let what = format!("rank {} of {plan}", report.rank);
            let actions = report.spans.iter().filter_map(|span| match &span.activity {
                Activity::Action(action) => Some(action.clone()),
                _ => None,
            });
            assert_eq!(actions.collect::<Vec<_>>(), schedule(&plan, report.rank), "{what}");
            let order: Vec<_> = report.spans.iter().map(|span| (span.begin, span.end)).collect();
            assert!(order.iter().all(|(begin, end)| begin <= end), "{what}");
            assert!(order.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{what}: spans overlap");
            for wait in &report.waits {
                let around = order.iter().filter(|(begin, end)| *begin <= wait.begin && wait.end <= *end);
                assert!(around.count() >= 1, "{what}: {wait:?} is in no span");
            }

            let total = report.waits.iter().map(|wait| wait.duration()).sum();
            assert_eq!(report.traffic.total_waited(), total, "{what}");
            assert_eq!(report.times.wait, total, "{what}");
            assert_eq!(report.spans.iter().map(|span| span.waited).sum::<std::time::Duration>(), total);
            let sent: u64 = report.spans.iter().map(|span| span.sent_bytes).sum();
            assert_eq!(sent, report.traffic.total().sent_bytes, "{what}: all is sent in a span");
            let times = report.times;
            let busy = times.load + times.compute + times.communication + times.wait;
            assert_eq!(busy, order.iter().map(|(begin, end)| *end - *begin).sum(), "{what}");
        }
    }
}

/// Loading takes exactly the memory that follows from the checkpoint's headers; the rest follows from the pipeline.
#[test]
fn a_pipeline_knows_its_costs() {
    let methods: [Method; 3] = [
        (&[(Cfg, 2), (Pipeline, 2), (Tensor, 2)], 1, 1, false),
        (&[(Ring, 2), (Tensor, 3)], 1, 1, false),
        (&[(Pipeline, 2), (Ulysses, 2)], 2, 1, false),
    ];
    for (checkpoint, dtype) in [
        ("pixart-alpha-256", DType::F32),
        ("pixart-sigma-512", DType::F32),
        ("pixart-alpha-256", DType::BF16),
    ] {
        let options = LoadOptions::new(device(), dtype);
        let mut pipeline = xdit_models::open(&goldens().join(checkpoint), &options).unwrap();
        for (degrees, patches, warmup_steps, distrifusion) in methods {
            let mesh = degrees.iter().fold(Mesh::default(), |mesh, &(axis, degree)| mesh.with(axis, degree));
            let patches = Some(patches);
            let request = Request {
                height: Some(112),
                width: Some(80),
                num_inference_steps: Some(3),
                use_resolution_binning: false,
                decode: false,
                parallel: ParallelConfig { mesh, patches, warmup_steps, distrifusion, ..Default::default() },
                ..Request::new("a cat")
            };
            let resolved = pipeline.resolve(&request).unwrap();
            let costs = pipeline.costs(&resolved).unwrap();
            let mut reports = Reports::default();
            pipeline.generate(&request, &mut reports).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(reports.ranks.len(), costs.len());
            for (report, cost) in reports.ranks.iter().zip(costs) {
                let what = format!("{checkpoint}, {dtype:?}, rank {} of {mesh}", report.rank);
                assert!(report.parameter_bytes > 0, "{what}");
                let parameters = cost.share.parameters;
                assert_eq!(report.parameter_bytes, parameters.steps + parameters.once, "{what}");
                assert_eq!(report.peak_kv_bytes, cost.peak_kv_bytes, "{what}");
                for axis in Axis::ALL {
                    // With these methods, all steps send the same.
                    let sent = report.traffic.of_label(axis.name()).sent_bytes;
                    assert_eq!(sent, 3 * cost.step_bytes.get(&axis).unwrap_or(&0), "{axis:?}: {what}");
                }
            }
        }
    }
}

/// Checks the number of exchanges that a model reports for its blocks, with its golden checkpoint and `conditions`.
fn check_model<T: Published>(checkpoint: &str, conditions: &T::Conditions, text_tokens: usize)
where
    T::Conditions: Send + Sync,
{
    let options = LoadOptions::new(device(), DType::F32);
    let folder = goldens().join(checkpoint).join("transformer");
    let read = |config| T::Config::read(config);
    let stem = "diffusion_pytorch_model";
    let component = Component::open(&folder, stem, &options, read, |_| DType::F32, T::load).unwrap();
    let spec = component.config.spec().clone();
    let [rows, columns] = [5, 7];
    let noise = random("noise", [1, rows * columns, spec.channels * spec.patch * spec.patch]);
    let noise = Tokens { x: noise, positions: Positions::grid(rows, columns) };
    // The first and the last block that can be skipped.
    let skippable = |block: &usize| !spec.skips.iter().flatten().any(|end| end == block);
    let ends = [(0..spec.blocks).find(skippable), (0..spec.blocks).rev().find(skippable)];
    let skipping = Branch { steps: 1..2, skip_layers: ends.into_iter().flatten().collect() };
    let branches = [Branch::classifier_free(true), vec![skipping]].concat();
    let work = Work { spec: spec.clone(), tokens: rows * columns, grain: 1, steps: 3, branches, images: 1 };
    let sizes = Sizes {
        spec,
        dtype: DType::F32,
        text_tokens: vec![text_tokens; 3],
        exchanges: component.config.exchanges(),
        frames: 1,
        levels: Vec::new(),
        rows: RowExchanges::default(),
    };
    let methods: [Method; 3] = [
        (&[(Cfg, 2), (Tensor, 2)], 1, 1, false),
        (&[(Ring, 2), (Tensor, 2)], 1, 0, true),
        (&[(Pipeline, 2), (Ulysses, 2)], 3, 0, false),
    ];
    for method in methods {
        let plan = planned(method, &work);
        let placements = component.config.all_placements();
        let costs = costs(&plan, &sizes, component.scales(placements.clone(), T::load));
        let component = component.clone();
        let job = Job {
            plan: plan.clone(),
            load: Box::new(move |share| {
                component.load_share(&device(), share, placements.clone(), Residency::Hold, T::load)
            }),
            scheduler: Subject::new(Kind::Alone).scheduler(),
            guidance: vec![
                Guidance::classifier_free(conditions.clone(), conditions.clone(), 2.0).skip_layers(2.0),
            ],
            noise: vec![noise.clone()],
        };
        let mut reports = Reports::default();
        run(job, &mut reports).unwrap_or_else(|error| panic!("{plan}{error}"));
        for (report, cost) in reports.ranks.iter().zip(costs.unwrap()) {
            let what = format!("{checkpoint}, rank {} of {plan}", report.rank);
            let sent = sent_bytes(&plan, &sizes, report.rank);
            for axis in Axis::ALL {
                let planned: u64 = sent.iter().filter_map(|step| step.get(&axis)).sum();
                assert_eq!(report.traffic.of_label(axis.name()).sent_bytes, planned, "{axis:?}: {what}");
            }
            let parameters = cost.share.parameters;
            assert_eq!(report.parameter_bytes, parameters.steps + parameters.once, "{what}");
            assert_eq!(report.peak_kv_bytes, cost.peak_kv_bytes, "{what}");
        }
    }
}

#[test]
fn models_know_their_seams() {
    let text = |features| random("text", [1, 6, features]);
    check_model::<Latte>("latte", &text(32), 0);
    let sizes = Some([1024, 1024, 768, 512, 0, 0]);
    let t5 = random("t5", [1, 256, 32]);
    let conditions = hunyuan::Conditions { bert: text(32), t5, t5_tokens: 9, sizes };
    check_model::<Hunyuan>("hunyuan-11", &conditions, 0);
    let pooled = |features| random("pooled", [1, features]);
    let conditions = pixart::Conditions { text: text(32), bias: None, size: None };
    check_model::<PixArt>("pixart-alpha-256", &conditions, 0);
    for checkpoint in ["dit-256", "dit-512"] {
        check_model::<Dit>(checkpoint, &dit::Conditions { class: 207 }, 0);
    }
    for checkpoint in ["sd3-medium", "sd35-medium", "sd35-large"] {
        let conditions = sd3::Conditions { text: text(32), pooled: pooled(28) };
        check_model::<Sd3>(checkpoint, &conditions, 6);
    }
    for checkpoint in ["flux-dev", "flux-schnell"] {
        let conditions = flux::Conditions { text: text(32), pooled: pooled(32), guidance: 3.5 };
        check_model::<Flux>(checkpoint, &conditions, 6);
    }
}

/// Sums of times are recorded even without details.
#[test]
fn sums_need_no_details() {
    let subject = Subject::new(Kind::Alone);
    for report in reports(&subject, &plan(&subject, (&[(Pipeline, 2)], 2, 1, false)), false) {
        assert!(report.spans.is_empty() && report.waits.is_empty());
        assert!(!report.times.compute.is_zero() && !report.times.wait.is_zero(), "{:?}", report.times);
    }
}
