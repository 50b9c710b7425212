//! Small recorded tables: sizes for resolution binning, token ids, and cleaned captions.

use serde_json::Value;
use xdit_models::caption::clean_caption;
use xdit_models::resolution::nearest_size;
use xdit_models::tokenizer::{T5Tokenizer, Tokenizer};
use xdit_tests::goldens;

fn recorded(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(goldens().join("cases").join(name)).unwrap()).unwrap()
}

fn pair(value: &Value) -> [usize; 2] {
    [0, 1].map(|index| value[index].as_f64().unwrap() as usize)
}

#[test]
fn sizes_are_binned_as_diffusers_does() {
    let mut checked = 0;
    for (name, table) in recorded("sizes.json").as_object().unwrap() {
        let sample_size = name.parse::<usize>().unwrap() / 8;
        let classified = table["classified"].as_array().unwrap().iter();
        let own = table["bins"].as_object().unwrap().values().map(|bin| (pair(bin), None));
        for (size, bin) in classified.map(|case| (pair(&case["size"]), Some(pair(&case["bin"])))).chain(own) {
            let nearest = nearest_size(sample_size, size[0], size[1]).unwrap();
            if let Some(bin) = bin {
                assert_eq!(nearest, bin, "{size:?} for {name}");
                checked += 1;
            }
            assert_eq!(
                nearest_size(sample_size, nearest[0], nearest[1]),
                Some(nearest),
                "a bin is its own bin"
            );
        }
    }
    assert!(checked > 20, "only {checked} sizes were recorded");
    assert_eq!(nearest_size(48, 512, 512), None);
}

#[test]
fn ids_of_the_golden_vocabulary() {
    let tokenizer = T5Tokenizer::load(&goldens().join("pixart-alpha-256/tokenizer")).unwrap();
    let cases = recorded("tokens.json");
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let ids: Vec<u32> =
            case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(tokenizer.encode(case["text"].as_str().unwrap(), 100_000).ids, ids, "{}", case["text"]);
    }
}

#[test]
fn captions_are_cleaned() {
    let cases = recorded("captions.json");
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 40);
    for case in cases {
        assert_eq!(clean_caption(case["text"].as_str().unwrap()), case["cleaned"], "{}", case["text"]);
    }
}
