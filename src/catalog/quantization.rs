//! Quantizations by the names that GGUF files carry: `Q4_K_M`, `Q8_0`, `UD-Q4_K_XL`, `F16`.

/// Mean bits per weight of the mixes that llama.cpp's quantizer makes: label, layers, token embedding, output
/// matrix. A mix gives some matrices (half of `attn_v` and `ffn_down` in the `_M` mixes) a finer type; the mean is
/// over the shapes of Llama and Qwen. A model with tied embeddings stores one matrix, at the output's width. In MXFP4
/// are gpt-oss's experts, all else is in Q8_0.
const MIXES: [(&str, f64, f64, f64); 17] = [
    ("Q2_K", 3.05, 2.625, 6.5625),
    ("Q3_K_S", 3.4375, 3.4375, 6.5625),
    ("Q3_K_M", 3.88, 3.4375, 6.5625),
    ("Q3_K_L", 4.25, 3.4375, 6.5625),
    ("Q4_0", 4.5, 4.5, 6.5625),
    ("Q4_1", 5.0, 5.0, 6.5625),
    ("Q4_K_S", 4.57, 4.5, 6.5625),
    ("Q4_K_M", 4.83, 4.5, 6.5625),
    ("Q5_0", 5.5, 5.5, 6.5625),
    ("Q5_1", 6.0, 6.0, 6.5625),
    ("Q5_K_S", 5.52, 5.5, 6.5625),
    ("Q5_K_M", 5.67, 5.5, 6.5625),
    ("Q6_K", 6.5625, 6.5625, 6.5625),
    ("Q8_0", 8.5, 8.5, 8.5),
    ("MXFP4", 4.35, 8.5, 8.5),
    ("F16", 16.0, 16.0, 16.0),
    ("F32", 32.0, 32.0, 32.0),
];

/// Bits per weight of a quantization's layers, token embedding and output matrix.
pub(super) fn bits_per_weight(label: &str) -> Option<(f64, f64, f64)> {
    let label = label.to_ascii_uppercase();
    let plain = label.strip_prefix("UD-").unwrap_or(&label);
    // The `_XL` and `_L` variants are the `_M` mix with embedding and output at Q8_0.
    let (base, large) = match plain {
        "BF16" => ("F16", false),
        "Q2_K_L" | "Q2_K_XL" => ("Q2_K", true),
        "Q3_K_XL" => ("Q3_K_L", true),
        "Q4_K_L" | "Q4_K_XL" => ("Q4_K_M", true),
        "Q5_K_L" | "Q5_K_XL" => ("Q5_K_M", true),
        "Q6_K_L" | "Q6_K_XL" => ("Q6_K", true),
        other => (other, false),
    };
    let (_, layers, embedding, output) = *MIXES.iter().find(|mix| mix.0 == base)?;
    Some(if large { (layers, 8.5, 8.5) } else { (layers, embedding, output) })
}

/// The quantizations that there are: llama.cpp's, the sizes of their mixes as publishers name them, and the bare
/// families that some files carry (`Q4`).
const KNOWN: [(&str, &[&str]); 18] = [
    ("F16", &[""]),
    ("BF16", &[""]),
    ("F32", &[""]),
    ("MXFP4", &["", "_MOE"]),
    ("TQ1", &["", "_0"]),
    ("TQ2", &["", "_0"]),
    ("IQ1", &["", "_S", "_M"]),
    ("IQ2", &["", "_XXS", "_XS", "_S", "_M"]),
    ("IQ3", &["", "_XXS", "_XS", "_S", "_M"]),
    ("IQ4", &["", "_NL", "_XS", "_NL_XL"]),
    ("Q2", &["", "_K", "_K_S", "_K_L", "_K_XL"]),
    ("Q3", &["", "_K", "_K_S", "_K_M", "_K_L", "_K_XL"]),
    ("Q4", &["", "_0", "_1", "_0_4_4", "_0_4_8", "_0_8_8"]),
    ("Q4", &["_K", "_K_S", "_K_M", "_K_L", "_K_XL"]),
    ("Q5", &["", "_0", "_1", "_K", "_K_S", "_K_M", "_K_L", "_K_XL"]),
    ("Q6", &["", "_K", "_K_S", "_K_M", "_K_L", "_K_XL"]),
    ("Q8", &["", "_0", "_1", "_K", "_K_S", "_K_M", "_K_L", "_K_XL"]),
    ("Q8_0", &["_L", "_XL"]),
];

/// Whether `text` is a quantization's name and nothing else, in any case.
pub fn is_quantization(text: &str) -> bool {
    let label = text.to_ascii_uppercase();
    let plain = label.strip_prefix("UD-").unwrap_or(&label);
    KNOWN.iter().any(|(family, ends)| plain.strip_prefix(family).is_some_and(|end| ends.contains(&end)))
}

/// The last quantization named in a file's path, in capitals: first in the file's own name, else in its folders'.
///
/// `x-q4_k_m-00001-of-00002.gguf` is `Q4_K_M`, `UD-Q4_K_XL/x-00001-of-00003.gguf` is `UD-Q4_K_XL`.
pub fn of_path(path: &str) -> Option<String> {
    path.rsplit(['/', '\\']).find_map(label_in)
}

/// The last label in a name, where it stands between separators.
fn label_in(name: &str) -> Option<String> {
    let name = name.to_ascii_uppercase();
    let bytes = name.as_bytes();
    (0..bytes.len()).rev().filter(|&at| at == 0 || !bytes[at - 1].is_ascii_alphanumeric()).find_map(|at| {
        let length = label_length(&bytes[at..])?;
        let start = if name[..at].ends_with("UD-") { at - 3 } else { at };
        Some(name[start..at + length].to_owned()).filter(|label| is_quantization(label))
    })
}

/// Length of the label that `bytes` (capitals) begins with.
fn label_length(bytes: &[u8]) -> Option<usize> {
    let ends = |at: usize| bytes.get(at).is_none_or(|b| !b.is_ascii_alphanumeric());
    for float in ["BF16", "F16", "F32"] {
        if bytes.starts_with(float.as_bytes()) && ends(float.len()) {
            return Some(float.len());
        }
    }
    // Q4_K_M, IQ4_XS, TQ1_0, MXFP4: a family, one digit, then short parts behind underscores.
    let family = ["IQ", "TQ", "Q", "MXFP"].into_iter().find(|f| bytes.starts_with(f.as_bytes()))?;
    let mut at = family.len();
    if !bytes.get(at)?.is_ascii_digit() || !ends(at + 1) {
        return None;
    }
    at += 1;
    const PARTS: [&str; 15] =
        ["0", "1", "2", "3", "4", "8", "K", "S", "M", "L", "XL", "XS", "XXS", "NL", "MOE"];
    while bytes.get(at) == Some(&b'_') {
        let rest = &bytes[at + 1..];
        let length = rest.iter().take_while(|b| b.is_ascii_alphanumeric()).count();
        if !PARTS.iter().any(|part| part.as_bytes() == &rest[..length]) {
            break;
        }
        at += 1 + length;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_quantization_is_read_from_its_name() {
        for (path, label) in [
            ("DeepSeek-R1-Distill-Qwen-1.5B-Q4_K_M.gguf", Some("Q4_K_M")),
            ("qwq-32b-q4_k_m-00001-of-00005.gguf", Some("Q4_K_M")),
            ("SmolLM2-135M-Instruct.Q4_1.gguf", Some("Q4_1")),
            ("Qwen3-4B-UD-Q4_K_XL.gguf", Some("UD-Q4_K_XL")),
            ("Qwen3-8B-IQ4_XS.gguf", Some("IQ4_XS")),
            ("Qwen3-8B-UD-IQ2_XXS.gguf", Some("UD-IQ2_XXS")),
            ("agentica-org_DeepScaleR-1.5B-Preview-f16.gguf", Some("F16")),
            ("BF16/Qwen3-32B-BF16-00001-of-00002.gguf", Some("BF16")),
            ("Q4_K_M/DeepSeek-R1-0528-00001-of-00009.gguf", Some("Q4_K_M")),
            ("Q8_0/model-Q4_0.gguf", Some("Q4_0")),
            ("model_Q5_K_M_imat.gguf", Some("Q5_K_M")),
            ("gpt-oss-20b-mxfp4.gguf", Some("MXFP4")),
            ("model-q4.gguf", Some("Q4")),
            ("model-Q9_K.gguf", None),
            ("Qwen2.5-3B-Instruct.gguf", None),
            ("QwQ-32B.gguf", None),
            ("", None),
        ] {
            assert_eq!(of_path(path).as_deref(), label, "{path}");
        }
    }

    #[test]
    fn only_a_whole_label_is_a_quantization() {
        for yes in ["q8_0", "Q4_K_M", "UD-Q4_K_XL", "ud-iq1_s", "bf16", "IQ4_NL", "Q6_K"] {
            assert!(is_quantization(yes), "{yes}");
        }
        for no in [
            "q9",
            "Q7_0",
            "Q4_K_XXS",
            "IQ5_S",
            "Q4_0_K",
            "UD-",
            "",
            "llama",
            "Q",
            "Q4_K_M.gguf",
            "7b",
            "thinking-2507",
            "x-Q4_0",
            "Q44",
        ] {
            assert!(!is_quantization(no), "{no}");
        }
    }
}
