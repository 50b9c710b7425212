//! The text that every rank of a sequence has whole is the same on all of them, bit for bit, after every block.

use std::sync::{Arc, Mutex};

use xdit_comm::LaunchOptions;
use xdit_core::plan::mesh::Axis::{Ring, Tensor as Tp, Ulysses};
use xdit_core::plan::mesh::{Axis, Mesh};
use xdit_core::plan::{ParallelConfig, Plan};
use xdit_core::transformer::Transformer;
use xdit_tests::bits;
use xdit_tests::toy::{Kind, Subject};
use xdit_tests::world::{pictures, run_in};
use xdit_tests::wrapped::wrapped;

/// The text after each block that a rank computed.
type Texts = Arc<Mutex<Vec<(usize, Vec<u32>)>>>;

/// What each rank made of the text in a run on a mesh of `degrees`.
fn texts(degrees: &[(Axis, usize)], patches: usize) -> Vec<Vec<(usize, Vec<u32>)>> {
    let subject = Subject::new(Kind::Joint);
    let mesh = degrees.iter().fold(Mesh::default(), |mesh, &(axis, degree)| mesh.with(axis, degree));
    let config = ParallelConfig { mesh, patches: Some(patches), ..ParallelConfig::default() };
    let job = subject.job(Plan::new(&config, &subject.work()).unwrap());
    let of_ranks = Arc::new(Mutex::new(Vec::<Texts>::new()));
    let seen = of_ranks.clone();
    let job = wrapped(job, move || {
        let texts = Texts::default();
        seen.lock().unwrap().push(texts.clone());
        Box::new(move |toy, index, hidden, context, attention| {
            let hidden = toy.block(index, hidden, context, attention);
            texts.lock().unwrap().extend(hidden.text.iter().map(|text| (index, bits(text))));
            hidden
        })
    });
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
