//! Linear layers, alone and with the operations around them.

use xdit_kernels::{self as own, reference};

use crate::cases::ACTIVATIONS;
use crate::setting::{Setting, Version, values};
use crate::truth;

pub fn linear(setting: &Setting) {
    // A single row, few and many rows, odd sizes; no rows, no outputs, no inputs.
    for [b, n, c_in, c_out] in [
        [1, 1, 1, 1],
        [1, 1, 256, 384],
        [2, 3, 77, 33],
        [1, 40, 300, 65],
        [3, 50, 64, 20],
        [2, 0, 16, 8],
        [2, 3, 16, 0],
        [1, 12, 0, 5],
    ] {
        let (x, weight) = (setting.random(1, [b, n, c_in]), setting.random(2, [c_out, c_in]));
        let bias = setting.random(3, [c_out]);
        for bias in [None, Some(bias)] {
            let numbers = bias.as_ref().map(values);
            let expected = if c_in == 0 {
                numbers.clone().unwrap_or_else(|| vec![0.0; c_out]).repeat(b * n)
            } else {
                truth::linear(&values(&x), &values(&weight), numbers.as_deref(), c_in, c_out)
            };
            let (mut xs, mut weights) = (setting.layouts(&x), setting.layouts(&weight));
            xs.resize(4, x.clone());
            weights.resize(4, weight.clone());
            for (x, weight) in xs.into_iter().zip(weights) {
                let y = match setting.version {
                    Version::Reference => reference::linear(x, weight, bias.clone()),
                    Version::Own => own::linear(x, weight, bias.clone()),
                };
                // The reference rounds the product before it adds the bias.
                setting.close(
                    "linear",
                    &y,
                    (&expected, [b, n, c_out]),
                    setting.roundings(1, 1 + setting.of_product()),
                );
            }
        }
    }
}

pub fn linear_activate(setting: &Setting) {
    let [b, n, c_in, c_out] = [2, 33, 64, 48];
    // Some outputs are where the two kinds of GELU differ most, and none is large.
    let (x, weight) = (setting.random(1, [b, n, c_in]), setting.normal(2, [c_out, c_in], 0.0, 0.2));
    for bias in [None, Some(setting.normal(3, [c_out], -1.0, 1.0))] {
        let numbers = bias.as_ref().map(values);
        let sums = truth::linear(&values(&x), &values(&weight), numbers.as_deref(), c_in, c_out);
        for activation in ACTIVATIONS {
            let expected: Vec<_> = sums.iter().map(|&sum| truth::activation(activation, sum)).collect();
            let (x, weight, bias) = (x.clone(), weight.clone(), bias.clone());
            let y = match setting.version {
                Version::Reference => reference::linear_activate(x, weight, bias, activation),
                Version::Own => own::linear_activate(x, weight, bias, activation),
            };
            let roundings = setting.roundings(2, 2 + setting.of_product());
            setting.close(&format!("{activation:?}"), &y, (&expected, [b, n, c_out]), roundings);
        }
    }
}

pub fn linear_add(setting: &Setting) {
    for [b, n, c_in, c_out] in
        [[1, 1, 1, 1], [2, 3, 77, 33], [1, 40, 256, 64], [3, 50, 64, 24], [2, 0, 16, 8]]
    {
        let (x, weight) = (setting.random(1, [b, n, c_in]), setting.random(2, [c_out, c_in]));
        let base = setting.random(4, [b, n, c_out]);
        for bias in [None, Some(setting.random(3, [c_out]))] {
            let numbers = bias.as_ref().map(values);
            let product = truth::linear(&values(&x), &values(&weight), numbers.as_deref(), c_in, c_out);
            let expected: Vec<_> = product.iter().zip(values(&base)).map(|(y, base)| y + base).collect();
            for (x, base) in setting.layouts(&x).into_iter().zip(setting.layouts(&base)) {
                let before = values(&base);
                let y = match setting.version {
                    Version::Reference => {
                        reference::linear_add(base.clone(), x, weight.clone(), bias.clone())
                    }
                    Version::Own => own::linear_add(base.clone(), x, weight.clone(), bias.clone()),
                };
                assert_eq!(values(&base), before, "a summand that others hold stays as it is");
                let roundings = 2 + setting.of_product();
                setting.close("linear + residual", &y, (&expected, [b, n, c_out]), roundings);
            }
        }
    }
}

pub fn linear_pair(setting: &Setting) {
    if setting.version == Version::Reference {
        return;
    }
    let (c_in, c_out) = (64, 96);
    for [b, of_first, of_second] in [[1, 7, 40], [2, 5, 33], [3, 16, 16]] {
        let streams = [setting.random(1, [b, of_first, c_in]), setting.random(2, [b, of_second, c_in])];
        let weights = [3, 4].map(|seed| setting.random(seed, [c_out, c_in]));
        let biases = [None, Some(setting.random(5, [c_out]))];
        let expected = [0, 1].map(|at: usize| {
            let bias = biases[at].as_ref().map(values);
            truth::linear(&values(&streams[at]), &values(&weights[at]), bias.as_deref(), c_in, c_out)
        });
        for (first, second) in setting.layouts(&streams[0]).into_iter().zip(setting.layouts(&streams[1])) {
            let results = own::linear_pair([first, second], weights.clone(), biases.clone());
            let roundings = 1 + setting.of_product();
            for (at, n) in [of_first, of_second].into_iter().enumerate() {
                setting.close("a stream", &results[at], (&expected[at], [b, n, c_out]), roundings);
            }
            // Tokens of one tensor are batches of rows to the next layer.
            let [_, second] = results;
            let numbers = values(&second);
            let weight = setting.random(6, [8, c_out]);
            let next = own::linear(second, weight.clone(), None);
            let expected = truth::linear(&numbers, &values(&weight), None, c_out, 8);
            setting.close("the next layer", &next, (&expected, [b, of_second, 8]), roundings);
        }
    }
}

pub fn linear_of_two(setting: &Setting) {
    for [n, c_x, c_y, c_out] in [[40, 64, 256, 72], [7, 5, 3, 4], [3, 8, 8, 0]] {
        let whole = setting.random(1, [2, n, c_x + c_y]);
        let (weight, bias) = (setting.random(2, [c_out, c_x + c_y]), setting.random(3, [c_out]));
        let numbers = values(&bias);
        let expected = truth::linear(&values(&whole), &values(&weight), Some(&numbers), c_x + c_y, c_out);
        let parts = [(0, c_x), (c_x, c_y)].map(|(first, len)| whole.clone().narrow(2, first, len));
        for (x, y) in setting.layouts(&parts[0]).into_iter().zip(setting.layouts(&parts[1])) {
            let (weight, bias) = (weight.clone(), Some(bias.clone()));
            let sum = match setting.version {
                Version::Reference => reference::linear_of_two(x, y, weight, bias),
                Version::Own => own::linear_of_two(x, y, weight, bias),
            };
            let roundings = setting.roundings(2, 1 + setting.of_product());
            setting.close("linear of two", &sum, (&expected, [2, n, c_out]), roundings);
        }
    }
}
