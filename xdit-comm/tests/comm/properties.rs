//! Random programs in random worlds give what the reference gives.

use proptest::prelude::*;

use crate::program::{self, OPS, Step, Waits};
use crate::watchdog::run;

fn step(size: usize) -> impl Strategy<Value = Step> {
    let order = Just((0..size).collect::<Vec<_>>()).prop_shuffle();
    (0..OPS.len(), order, 1..=size, any::<u64>()).prop_map(|(op, order, degree, salt)| Step {
        op: OPS[op],
        order,
        degree,
        salt,
    })
}

fn world_and_steps() -> impl Strategy<Value = (usize, Vec<Step>)> {
    (1usize..=8).prop_flat_map(|size| (Just(size), prop::collection::vec(step(size), 1..12)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_program_agrees_with_the_reference((size, steps) in world_and_steps(), last_first: bool) {
        let expected = program::expected(&steps, size);
        let waits = if last_first { Waits::LastFirst } else { Waits::OneByOne };
        let got = run(size, move |comm| program::run(&steps, waits, &comm));
        prop_assert_eq!(got, Ok(expected));
    }
}
