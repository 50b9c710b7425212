//! Runs the examples of `xdit-models` on the demo checkpoint.

use crate::workspace::Workspace;

#[path = "../../../xdit-models/examples/generate.rs"]
#[expect(dead_code, reason = "the test calls the function that `main` calls")]
mod generate;
#[path = "../../../xdit-models/examples/transformer.rs"]
#[expect(dead_code, reason = "the test calls the function that `main` calls")]
mod transformer;

#[test]
fn the_generate_example_works() {
    let workspace = Workspace::with_demo();
    let (latents, pixels) = generate::run(&workspace.path("demo")).unwrap();
    assert_eq!(latents.dims(), [1, 4, 32, 32]);
    assert_eq!(pixels.dims(), [256, 256, 3]);

    // Generates the same picture with the command.
    let same = [
        "generate",
        "--model",
        "demo",
        "--prompt",
        "a small cactus",
        "--seed",
        "7",
        "--num-inference-steps",
        "4",
    ];
    workspace.ok(&[&same[..], &["--quiet"]].concat());
    let (_, _, expected) = crate::workspace::pixels(&workspace.path("xdit.png"));
    let pixels: Vec<u8> = pixels.into_data().iter::<f32>().map(|value| value as u8).collect();
    assert!(pixels == expected, "the example and the command generate different pictures");
}

#[test]
fn the_transformer_example_works() {
    let workspace = Workspace::with_demo();
    let noise = transformer::run(&workspace.path("demo")).unwrap();
    assert_eq!(noise.dims(), [1, 4, 24, 40]);
    assert!(noise.into_data().iter::<f32>().all(f32::is_finite));
}
