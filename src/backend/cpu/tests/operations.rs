use super::super::kernels::{Layout, WeightMatrix};
use super::super::{COPY_STEPS, Weight};
use super::*;
use crate::backend::{Activation, Heads, Projection, Source};
use crate::quant;

/// Runs `operation` on rows of the inputs, each [rows, width]; gives the first buffer after it, or the extra one.
fn apply(
    mut backend: CpuBackend,
    inputs: &[&[f32]],
    width: usize,
    rope: &Rope,
    operation: impl Fn(&mut CpuBackend, &[Buffer]) -> Buffer,
) -> Vec<f32> {
    let count = inputs[0].len() / width;
    let inputs: Vec<Input> = inputs.iter().map(|values| Input::new(&mut backend, values, width)).collect();
    let mut buffers: Vec<Buffer> = inputs.iter().map(|input| input.buffer).collect();
    buffers.push(backend.add_buffer(width));
    backend.prepare(plan(count, count.div_ceil(PAGE_LEN)), rope).expect("memory");
    begin(&mut backend, &rows(count));
    inputs.iter().for_each(|input| input.load(&mut backend));
    let result = operation(&mut backend, &buffers);
    backend.read(result).unwrap().to_vec()
}

fn f64_norm(x: &[f32], weight: &[f32], epsilon: f64) -> Vec<f64> {
    let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(&v, &w)| f64::from(v) / (mean + epsilon).sqrt() * f64::from(w)).collect()
}

/// One product of the source's `width` values with an f32 matrix [width, width] of which row i has a 1 in column
/// i + 1 (the last in the first): what comes out is the source, turned by one place.
fn turned(
    mut backend: CpuBackend,
    inputs: &[&[f32]],
    width: usize,
    sum: bool,
    source: impl Fn(&[Buffer]) -> Source,
) -> Vec<f32> {
    let one = |i: usize| f32::from(u8::from(i % width == (i / width + 1) % width));
    let values: Vec<f32> = (0..width * width).map(one).collect();
    let matrix = backend.add_matrix(&matrix("turn", &values, width)).expect("a matrix");
    let to = backend.add_buffer(width);
    apply(backend, inputs, width, &no_rope(), |backend, b| {
        let sum = sum.then_some(b[0]);
        backend.linear(source(b), &[Projection { matrix, bias: None, to, sum }]);
        sum.unwrap_or(to)
    })
}

/// Rows of `width` values, each turned by one place.
fn turn<T: Copy>(values: &[T], width: usize) -> Vec<T> {
    let mut values = values.to_vec();
    values.chunks_mut(width).for_each(|row| row.rotate_left(1));
    values
}

#[test]
fn a_norm_divides_by_the_root_of_the_mean_square() {
    for (rows, width) in [(40, 1), (3, 16), (40, 30), (1, 576), (9, 600)] {
        let (x, weight) = (noise(1, rows * width, 3.0), noise(2, width, 1.0));
        let values = everywhere(|mut backend| {
            let weight = backend.add_vector(weight.clone()).unwrap();
            turned(backend, &[&x], width, false, |b| Source::RmsNorm {
                from: b[0],
                weight,
                epsilon: 1e-6,
                to: b[1],
            })
        });
        let expected: Vec<f64> = x.chunks(width).flat_map(|row| f64_norm(row, &weight, 1e-6)).collect();
        assert_close(&values, &turn(&expected, width), 1e-6);
    }
}

#[test]
fn swiglu_is_silu_of_the_gate_times_up() {
    for (rows, width) in [(1, 900), (3, 77), (70, 300)] {
        let (gate, up) = (noise(5, rows * width, 8.0), noise(6, rows * width, 2.0));
        let values = everywhere(|backend| {
            turned(backend, &[&gate, &up], width, false, |b| Source::Gated {
                gate: b[0],
                up: b[1],
                activation: Activation::SwiGlu,
            })
        });
        let silu = |g: f64| g / (1.0 + (-g).exp());
        let expected: Vec<f64> =
            gate.iter().zip(&up).map(|(&g, &u)| silu(f64::from(g)) * f64::from(u)).collect();
        assert_close(&values, &turn(&expected, width), 1e-6);
    }
}

#[test]
fn swiglu_of_huge_gates_is_finite() {
    let (gate, up) = ([-1e30f32, -200.0, -90.0, 0.0, 90.0, 1e30], [1.0f32; 6]);
    let values = everywhere(|backend| {
        turned(backend, &[&gate, &up], 6, false, |b| Source::Gated {
            gate: b[0],
            up: b[1],
            activation: Activation::SwiGlu,
        })
    });
    assert_close(&values, &[0.0, 0.0, 0.0, 90.0, f64::from(1e30f32), 0.0], 1e-6);
}

#[test]
fn a_product_is_added_to_the_residual_stream() {
    for rows in [1, 90] {
        let (a, b) = (noise(7, rows * 400, 1.0), noise(8, rows * 400, 1.0));
        let values = everywhere(|backend| turned(backend, &[&a, &b], 400, true, |b| Source::Buffer(b[1])));
        let expected: Vec<f32> = a.iter().zip(turn(&b, 400)).map(|(a, b)| a + b).collect();
        assert_eq!(values, expected);
    }
}

#[test]
fn a_feed_forward_is_its_products_one_after_the_other_to_the_bit() {
    let clamped = Activation::Clamped { alpha: 1.7, limit: 0.9 };
    for (rows, activation) in [(3, Activation::SwiGlu), (40, Activation::SwiGlu), (70, clamped)] {
        let (width, inner) = (64, 136); // 9 tiles, the last of half
        let x = noise(1, rows * width, 2.0);
        let of = |fused: bool| {
            everywhere(|mut backend| {
                let mut projection = |seed: u64, rows: usize, columns: usize| Projection {
                    matrix: backend
                        .add_matrix(&matrix("m", &noise(seed, rows * columns, 0.3), columns))
                        .unwrap(),
                    bias: Some(backend.add_vector(noise(seed + 10, rows, 1.0)).unwrap()),
                    to: backend.add_buffer(rows),
                    sum: None,
                };
                let [gate, up, down] = [(2, inner, width), (3, inner, width), (4, width, inner)]
                    .map(|(seed, rows, columns)| projection(seed, rows, columns));
                apply(backend, &[&x], width, &no_rope(), |backend, b| {
                    let (source, down) = (Source::Buffer(b[0]), Projection { sum: Some(b[0]), ..down });
                    if fused {
                        backend.feed_forward(source, [gate, up, down], activation);
                    } else {
                        backend.linear(source, &[gate, up]);
                        backend.linear(Source::Gated { gate: gate.to, up: up.to, activation }, &[down]);
                    }
                    b[0]
                })
            })
        };
        assert_eq!(of(true), of(false));
    }
}

#[test]
fn rope_norms_each_head_before_and_takes_off_the_center_after() {
    for (heads, dim) in [(3, 64), (2, 80), (5, 20)] {
        let width = heads * dim;
        let x = noise(3, 150 * width, 3.0);
        let (weight, center) = (noise(4, dim, 1.0), noise(6, width, 1.0));
        let values = everywhere(|mut backend| {
            let norm = Some((backend.add_vector(weight.clone()).unwrap(), 1e-5));
            let center = Some(backend.add_vector(center.clone()).unwrap());
            apply(backend, &[&x], width, &no_rope(), |backend, b| {
                backend.rope(&[Heads { x: b[0], dim, norm, rotate_from: 0, center }]);
                b[0]
            })
        });
        let normed = x.chunks(dim).flat_map(|head| f64_norm(head, &weight, 1e-5));
        let expected: Vec<f64> = normed.zip(center.iter().cycle()).map(|(x, &c)| x - f64::from(c)).collect();
        assert_close(&values, &expected, 1e-6);
    }
}

#[test]
fn rope_turns_the_first_dimensions_of_each_head_by_its_position() {
    let (heads, head_dim, count) = (3, 20, 150);
    let width = heads * head_dim;
    let x = noise(9, count * width, 1.0);
    for style in [RopeStyle::Halves, RopeStyle::Interleaved] {
        for pairs in [0, 6, 10] {
            let frequencies: Vec<f64> =
                (0..pairs).map(|i| 10_000f64.powf(-(i as f64) / pairs as f64)).collect();
            let rope = Rope { inverse_frequencies: frequencies.clone(), magnitude: 1.25, style };
            let values = everywhere(|backend| {
                apply(backend, &[&x], width, &rope, |backend, b| {
                    backend.rope(&[Heads {
                        x: b[0],
                        dim: head_dim,
                        norm: None,
                        rotate_from: 0,
                        center: None,
                    }]);
                    b[0]
                })
            });
            let mut expected: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
            for (i, head) in expected.chunks_mut(head_dim).enumerate() {
                let position = (i / heads) as f64;
                for (pair, frequency) in frequencies.iter().enumerate() {
                    let (a, b) = match style {
                        RopeStyle::Halves => (pair, pair + pairs),
                        RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
                    };
                    let (sin, cos) = (position * frequency).sin_cos();
                    let (x, y) = (head[a], head[b]);
                    head[a] = 1.25 * (x * cos - y * sin);
                    head[b] = 1.25 * (y * cos + x * sin);
                }
            }
            assert_close(&values, &expected, 1e-6);
        }
    }
}

#[test]
fn embed_looks_up_quantized_rows() {
    let (vocabulary, width) = (100, 256);
    for kind in BlockType::ALL {
        let mut bytes = vec![0; kind.row_bytes(vocabulary * width)];
        quant::quantize(kind, &noise(10, vocabulary * width, 1.0), &mut bytes);
        let table = Tensor::from_bytes("token_embd.weight", kind, &[vocabulary, width], bytes);
        let all = table.values();
        let values = everywhere(|mut backend| {
            let matrix = backend.add_embedding(&table).unwrap();
            let buffer = backend.add_buffer(width);
            backend.prepare(plan(70, 2), &no_rope()).unwrap();
            let mut rows = rows(70);
            rows.iter_mut().for_each(|row| row.token = 99 - row.token);
            begin(&mut backend, &rows);
            backend.embed(matrix, buffer);
            backend.read(buffer).unwrap().to_vec()
        });
        let expected: Vec<f32> = (30..100).rev().flat_map(|t| all[t * width..][..width].to_vec()).collect();
        assert_eq!(bits(&values), bits(&expected), "{kind}");
    }
}

/// Three matrices of 256 columns over one input: outputs of all, one after the other.
fn products(mut backend: CpuBackend, kinds: [BlockType; 3], count: usize) -> (Vec<f32>, Vec<f64>) {
    let columns = 256;
    let x = noise(12, count * columns, 1.0);
    let input = Input::new(&mut backend, &x, columns);
    let mut projections = Vec::new();
    let mut expected = Vec::new();
    for (i, (kind, rows)) in kinds.into_iter().zip([40, 100, 16]).enumerate() {
        let mut bytes = vec![0; kind.row_bytes(rows * columns)];
        quant::quantize(kind, &noise(13 + i as u64, rows * columns, 0.2), &mut bytes);
        let tensor = Tensor::from_bytes("w", kind, &[rows, columns], bytes);
        let bias = (i != 1).then(|| noise(16, rows, 1.0));
        for x in x.chunks(columns) {
            let dot =
                |row: &[f32]| row.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>();
            let bias = |row| bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]));
            expected.extend(tensor.values().chunks(columns).enumerate().map(|(i, row)| dot(row) + bias(i)));
        }
        let bias = bias.map(|bias| backend.add_vector(bias).unwrap());
        let matrix = backend.add_matrix(&tensor).unwrap();
        projections.push(Projection { matrix, bias, to: backend.add_buffer(rows), sum: None });
    }
    backend.prepare(plan(count, count.div_ceil(PAGE_LEN)), &no_rope()).unwrap();
    begin(&mut backend, &rows(count));
    input.load(&mut backend);
    backend.linear(Source::Buffer(input.buffer), &projections);
    (projections.iter().flat_map(|p| backend.read(p.to).unwrap().to_vec()).collect(), expected)
}

#[test]
fn linear_multiplies_one_input_with_several_matrices_of_any_types() {
    for kinds in [
        [BlockType::Q4_K, BlockType::Q8_0, BlockType::F32],
        [BlockType::F16, BlockType::BF16, BlockType::F32],
        [BlockType::Q6_K, BlockType::Q5_0, BlockType::Q4_0],
    ] {
        for count in [1, 5, 70] {
            let values = everywhere(|backend| products(backend, kinds, count).0);
            let (_, expected) = products(backend(1, best()), kinds, count);
            // Results are of size 3. An activation in 8 bits is off by 0.007 (standard deviation), so a sum of 256 of
            // them, times weights of 0.2, by 0.02; six times that is allowed.
            let tolerance = if kinds[0] == BlockType::F16 { 1e-5 } else { 0.12 };
            assert_close(&values, &expected, tolerance);
        }
    }
}

#[test]
fn matrices_as_in_the_file_give_the_same_bits_as_interleaved_ones() {
    let kinds = [BlockType::Q4_K, BlockType::Q6_K, BlockType::Q8_0];
    for count in [1, 9] {
        let of = |interleaved_bytes| {
            let options = CpuOptions { threads: Some(2), interleaved_bytes, ..Default::default() };
            bits(&products(CpuBackend::new(options).unwrap(), kinds, count).0)
        };
        assert_eq!(of(0), of(u64::MAX));
    }
}

#[test]
fn once_all_is_interleaved_steps_of_one_row_and_of_several_try_how_weights_are_best_fetched() {
    let width = 256;
    let mut backend = backend(2, best());
    let tensor = Tensor::from_bytes("w", BlockType::Q8_0, &[128, width], vec![0; 128 * width / 32 * 34]);
    // `add_matrix` interleaves at once what is not in a file
    backend.weights.push(Weight::Matrix(WeightMatrix::new(&tensor, Layout::Interleaved).unwrap()));
    let matrix = Matrix(0);
    let [from, to] = [width, 128].map(|width| backend.add_buffer(width));
    backend.prepare(plan(2, 1), &no_rope()).unwrap();
    let mut tries = |count| {
        begin(&mut backend, &rows(count));
        backend.write(from, &vec![0.0; count * width]);
        let is_on = backend.ready().linear.trials.is_on();
        backend.linear(Source::Buffer(from), &[Projection { matrix, bias: None, to, sum: None }]);
        is_on
    };
    let copying = (0..=COPY_STEPS).filter(|_| tries(1)).count();
    assert_eq!(copying, 0, "the first step, and those that interleave");
    for (rows, ways) in [(1, 4), (2, 3)] {
        let steps = (0..100).filter(|_| tries(rows)).count();
        // five rounds at least, of which the first two try all ways, and nine at most
        assert!((2 * ways + 3..=9 * ways).contains(&steps), "{steps} steps of {rows} rows");
        assert!(!tries(rows), "an end");
    }
}

#[test]
fn gather_keeps_the_rows_that_want_logits_and_later_operations_work_on_them() {
    let (count, width) = (9, 20);
    let x = noise(11, count * width, 1.0);
    for in_place in [false, true] {
        let mut backend = backend(2, best());
        let input = Input::new(&mut backend, &x, width);
        let [other, normed] = [(); 2].map(|()| backend.add_buffer(width));
        let weight = backend.add_vector(vec![1.0; width]).unwrap();
        backend.prepare(plan(count, 1), &no_rope()).unwrap();
        let mut rows = rows(count);
        rows.iter_mut().for_each(|row| row.wants_logits = row.position % 4 == 2);
        begin(&mut backend, &rows);
        input.load(&mut backend);
        let to = if in_place { input.buffer } else { other };
        backend.gather(input.buffer, to);
        let kept = [&x[2 * width..3 * width], &x[6 * width..7 * width]].concat();
        assert_eq!(backend.read(to).unwrap(), kept);

        backend.linear(Source::RmsNorm { from: to, weight, epsilon: 1e-6, to: normed }, &[]);
        assert_eq!(backend.read(normed).unwrap().len(), kept.len());
    }
}

#[test]
fn the_name_tells_instruction_set_and_threads() {
    assert_eq!(backend(1, Isa::Scalar).device().to_string(), "cpu (scalar, 1 thread)");
    assert_eq!(backend(3, best()).device().to_string(), format!("cpu ({}, 3 threads)", best()));
}

#[test]
fn a_tensor_that_is_no_matrix_is_refused_by_name() {
    let tensor = Tensor::from_bytes("blk.0.odd", BlockType::F32, &[2, 3, 4], vec![0; 96]);
    let mut backend = backend(1, best());
    for error in [backend.add_matrix(&tensor).unwrap_err(), backend.add_embedding(&tensor).unwrap_err()] {
        assert!(
            error.to_string().contains("blk.0.odd") && error.to_string().contains("[2, 3, 4]"),
            "{error}"
        );
    }
}
