//! Real weights against Hugging Face transformers in float32 on the same, dequantized, weights.

mod common;

use common::{QWEN_05B, QWEN_15B, Reference, SMOLLM2, fixture, model};
use pensive::{Event, Model, Options, Prompt};

/// KL divergence from the reference in nats, averaged over all positions, and how often the most likely token agrees.
/// Over 65 classes: the reference's 64 most likely tokens, and all the rest.
fn divergence(model: &Model, reference: &Reference) -> (f64, usize) {
    let ids = reference.ids("input_ids");
    let (top_ids, top_logprobs) = (reference.ids("top_ids"), reference.floats("top_logprobs"));
    let (mut kl, mut agreed) = (0.0, 0);
    model
        .evaluate(&ids, |position, logits| {
            let of = position * 64..(position + 1) * 64;
            let (top_ids, top_logprobs) = (&top_ids[of.clone()], &top_logprobs[of]);
            let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
            let sum: f64 = logits.iter().map(|&l| (f64::from(l) - best).exp()).sum();
            let logprob = |id: u32| f64::from(logits[id as usize]) - best - sum.ln();
            let (mut rest_p, mut rest_q) = (1.0, 1.0);
            for (&id, &reference) in top_ids.iter().zip(top_logprobs) {
                let p = f64::from(reference).exp();
                kl += p * (f64::from(reference) - logprob(id));
                rest_p -= p;
                rest_q -= logprob(id).exp();
            }
            if rest_p > 1e-9 {
                kl += rest_p * (rest_p / rest_q.max(1e-12)).ln();
            }
            agreed += usize::from(f64::from(logits[top_ids[0] as usize]) == best);
        })
        .unwrap();
    (kl / ids.len() as f64, agreed)
}

/// At most `limit` nats from the reference. The limits are pensive's goals: llama.cpp has 0.0024, 0.0007 and 0.0091.
fn stays_near_the_reference(which: (&str, &str), limit: f64) {
    let Some(path) = fixture(&format!("real/{}.safetensors", which.0)) else { return };
    let Some(model) = model(which) else { return };
    let (kl, agreed) = divergence(model, &Reference::open(&path));
    println!("{}: KL {kl:.5}, most likely token agrees at {agreed} of 256", which.0);
    assert!(kl <= limit, "{}: KL {kl:.5} is above {limit}", which.0);
}

#[test]
fn smollm2_stays_near_the_reference() {
    stays_near_the_reference(SMOLLM2, 0.0015);
}

#[test]
fn qwen_05b_stays_near_the_reference() {
    stays_near_the_reference(QWEN_05B, 0.00035);
}

#[test]
fn qwen_15b_stays_near_the_reference() {
    stays_near_the_reference(QWEN_15B, 0.0025);
}

/// 64 greedy tokens: at least 48 equal the reference's, or the two part at a near tie of the reference.
fn continues_like_the_reference(which: (&str, &str)) {
    let Some(path) = fixture(&format!("real/{}.safetensors", which.0)) else { return };
    let Some(model) = model(which) else { return };
    let reference = Reference::open(&path);
    let prompt = reference.ids("input_ids")[..64].to_vec();
    let expected = reference.ids("greedy_ids");
    let top2 = reference.floats("greedy_top2");
    let options = Options::new().temperature(0.0).max_tokens(64);
    let mut tokens = Vec::new();
    for event in model.generate(Prompt::Tokens(prompt), &options).unwrap() {
        if let Event::Done(stats) = event.unwrap() {
            tokens = stats.tokens;
        }
    }
    let same = tokens.iter().zip(&expected).take_while(|(a, b)| a == b).count();
    let gap = top2.chunks(2).nth(same).map(|two| two[0] - two[1]);
    println!("{}: {same} greedy tokens equal, then the reference's gap is {gap:?}", which.0);
    let ended = same == tokens.len() && tokens.last().is_some_and(|t| model.tokenizer().ends().contains(t));
    assert!(
        same >= 48 || ended || gap.is_some_and(|gap| gap < 0.1),
        "{}: parted after {same} tokens at a gap of {gap:?}",
        which.0
    );
}

#[test]
fn smollm2_continues_like_the_reference() {
    continues_like_the_reference(SMOLLM2);
}

#[test]
fn qwen_05b_continues_like_the_reference() {
    continues_like_the_reference(QWEN_05B);
}

#[test]
fn qwen_15b_continues_like_the_reference() {
    continues_like_the_reference(QWEN_15B);
}
