use crate::cpu::{
    lanes::{Lanes, Level, Vectorized},
    math,
};

/// A function of one number, applied to vectors.
trait Function {
    fn apply<V: Lanes>(x: V) -> V;
}

macro_rules! functions {
    ($($name:ident = $f:expr;)*) => {$(
        #[derive(Clone, Copy)]
        struct $name;
        impl Function for $name {
            #[inline(always)]
            fn apply<V: Lanes>(x: V) -> V {
                $f(x)
            }
        }
    )*};
}
functions! {
    Exp = math::exp;
    Exp2 = math::exp2;
    Silu = math::silu;
    SiluByReciprocal = math::silu_by_reciprocal;
    QuickGelu = math::quick_gelu;
    GeluTanh = math::gelu_tanh;
    Gelu = math::gelu;
}

struct Each<'a, F>(&'a mut [f32], F);

impl<F: Function> Vectorized for Each<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        for at in (0..self.0.len()).step_by(V::N) {
            let x = &mut self.0[at..];
            F::apply(V::load_or(x, 0.0)).store_some(x);
        }
    }
}

fn evaluate<F: Function>(level: Level, f: F, x: &[f32]) -> Vec<f32> {
    let mut y = x.to_vec();
    level.run(Each(&mut y, f));
    y
}

/// Arguments that are evenly spaced, and arguments with every exponent, of both signs.
fn arguments(limit: f32) -> Vec<f32> {
    let even = (-200_000..=200_000).map(|i| limit * i as f32 / 200_000.0);
    let exponents = (0..4000).map(|i| 2f32.powi(i / 40 - 90) * (1.0 + (i % 40) as f32 / 41.0));
    even.chain(exponents.clone()).chain(exponents.map(|x| -x)).filter(|x| x.abs() <= limit).collect()
}

/// The largest |f(x) - truth(x)| / unit(x, truth) over `x`, at the worst level.
fn worst<F: Function + Copy>(
    f: F,
    x: &[f32],
    truth: impl Fn(f64) -> f64,
    unit: impl Fn(f64, f64) -> f64,
) -> f64 {
    let error_at = |&level: &Level| {
        let y = evaluate(level, f, x);
        let error = |(&x, &y): (&f32, &f32)| {
            let expected = truth(f64::from(x));
            (f64::from(y) - expected).abs() / unit(f64::from(x), expected)
        };
        let error = x.iter().zip(&y).map(error).fold(0.0, f64::max);
        println!("{} {level:?}: {error:.2e}", std::any::type_name::<F>());
        error
    };
    Level::available().iter().map(error_at).fold(0.0, f64::max)
}

/// The distance to the next f32.
fn ulp(y: f64) -> f64 {
    let y = y.abs() as f32;
    f64::from(y.next_up()) - f64::from(y)
}

#[test]
fn exponentials_are_right_to_the_last_bit_or_two() {
    assert!(worst(Exp, &arguments(87.0), f64::exp, |_, y| ulp(y)) < 1.25);
    assert!(worst(Exp2, &arguments(125.9), f64::exp2, |_, y| ulp(y)) < 1.5);
}

#[test]
fn exponentials_at_the_ends() {
    let x = [f32::NEG_INFINITY, -1e30, -200.0, -0.0, 0.0, 200.0, 1e30, f32::INFINITY];
    let y = [0.0, 0.0, 0.0, 1.0, 1.0, f32::INFINITY, f32::INFINITY, f32::INFINITY];
    for &level in Level::available() {
        assert_eq!(evaluate(level, Exp, &x), y, "{level:?}");
        assert_eq!(evaluate(level, Exp2, &x), y, "{level:?}");
        assert!(evaluate(level, Exp, &[f32::NAN])[0].is_nan(), "{level:?}");
        assert!(evaluate(level, Exp2, &[f32::NAN])[0].is_nan(), "{level:?}");
    }
}

/// erfc, by its continued fraction for large arguments and its series for small ones.
fn erfc(z: f64) -> f64 {
    if z < 0.0 {
        return 2.0 - erfc(-z);
    }
    if z < 2.0 {
        let (mut term, mut sum) = (z, z);
        for n in 1..100 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let fraction = (1..200).rev().fold(0.0, |tail, n| f64::from(n) / 2.0 / (z + tail));
    (-z * z).exp() / std::f64::consts::PI.sqrt() / (z + fraction)
}

/// An activation is near `x` or near 0, so its error is relative to |x|.
fn of_argument(x: f64, _: f64) -> f64 {
    x.abs().max(1e-30)
}

#[test]
fn activations_are_right_to_one_part_in_eight_million() {
    const TOLERANCE: f64 = 1.25e-7;
    let x = arguments(30.0);
    let swish = |slope: f64| move |x: f64| x / (1.0 + (-slope * x).exp());
    let tanh =
        |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
    assert!(worst(Silu, &x, swish(1.0), of_argument) < TOLERANCE);
    assert!(worst(QuickGelu, &x, swish(1.702), of_argument) < TOLERANCE);
    assert!(worst(GeluTanh, &x, tanh, of_argument) < TOLERANCE);
    assert!(worst(Gelu, &x, |x| 0.5 * x * erfc(-x / 2f64.sqrt()), of_argument) < TOLERANCE);
}

#[test]
fn activations_at_the_ends() {
    let x = [-1e30, -200.0, -0.0, 0.0, 200.0, 1e30, f32::INFINITY];
    let y = [0.0, 0.0, 0.0, 0.0, 200.0, 1e30, f32::INFINITY];
    for &level in Level::available() {
        assert_eq!(evaluate(level, Silu, &x), y, "{level:?}");
        assert_eq!(evaluate(level, QuickGelu, &x), y, "{level:?}");
        assert_eq!(evaluate(level, GeluTanh, &x), y, "{level:?}");
        assert_eq!(evaluate(level, Gelu, &x), y, "{level:?}");
        assert!(evaluate(level, Gelu, &[f32::NAN])[0].is_nan(), "{level:?}");
        assert!(evaluate(level, GeluTanh, &[f32::NAN])[0].is_nan(), "{level:?}");
    }
}

#[test]
fn silu_by_reciprocal_is_right_to_one_part_in_four_million_and_at_the_ends() {
    let silu = |x: f64| x / (1.0 + (-x).exp());
    assert!(worst(SiluByReciprocal, &arguments(80.0), silu, of_argument) < 2.5e-7);
    for &level in Level::available() {
        let y = evaluate(level, SiluByReciprocal, &[f32::NEG_INFINITY, -1e30, -200.0, -0.0]);
        assert!(y.iter().all(|y| y.abs() < 1e-32), "{y:?} at {level:?}");
        let large = [80.0, 1e30, f32::INFINITY];
        assert_eq!(evaluate(level, SiluByReciprocal, &large), large, "{level:?}");
        assert!(evaluate(level, SiluByReciprocal, &[f32::NAN])[0].is_nan(), "{level:?}");
    }
}
