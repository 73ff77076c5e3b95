//! Which type each tensor of a quantized model gets: llama.cpp's mixes, by their names.

use super::BlockType;
use BlockType::*;

/// A mix: its name, `general.file_type` in GGUF (llama.cpp's `llama_ftype`), and the type of most matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// `Q4_K_M`
    pub name: &'static str,
    /// GGUF's number of it.
    pub file_type: u32,
    /// What matrices get for which nothing else is said.
    pub base: BlockType,
}

const MIXES: [Mix; 33] = [
    mix("F32", 0, F32),
    mix("F16", 1, F16),
    mix("BF16", 32, BF16),
    mix("Q8_0", 7, Q8_0),
    mix("Q6_K", 18, Q6_K),
    mix("Q5_K_M", 17, Q5_K),
    mix("Q5_K_S", 16, Q5_K),
    mix("Q5_0", 8, Q5_0),
    mix("Q5_1", 9, Q5_1),
    mix("Q4_K_M", 15, Q4_K),
    mix("Q4_K_S", 14, Q4_K),
    mix("Q4_0", 2, Q4_0),
    mix("Q4_1", 3, Q4_1),
    mix("IQ4_NL", 25, IQ4_NL),
    mix("IQ4_XS", 30, IQ4_XS),
    mix("Q3_K_L", 13, Q3_K),
    mix("Q3_K_M", 12, Q3_K),
    mix("Q3_K_S", 11, Q3_K),
    mix("IQ3_M", 27, IQ3_S),
    mix("IQ3_S", 26, IQ3_S),
    mix("IQ3_XS", 22, IQ3_S),
    mix("IQ3_XXS", 23, IQ3_XXS),
    mix("Q2_K", 10, Q2_K),
    mix("Q2_K_S", 21, Q2_K),
    mix("IQ2_M", 29, IQ2_S),
    mix("IQ2_S", 28, IQ2_XS),
    mix("IQ2_XS", 20, IQ2_XS),
    mix("IQ2_XXS", 19, IQ2_XXS),
    mix("IQ1_M", 31, IQ1_M),
    mix("IQ1_S", 24, IQ1_S),
    mix("MXFP4_MOE", 38, Q8_0),
    mix("TQ1_0", 36, TQ1_0),
    mix("TQ2_0", 37, TQ2_0),
];

const fn mix(name: &'static str, file_type: u32, base: BlockType) -> Mix {
    Mix { name, file_type, base }
}

/// What a mix needs to know of a model.
#[derive(Clone, Copy, Debug)]
pub struct ModelShape {
    /// Layers.
    pub layers: usize,
    /// Query heads of a key/value head.
    pub group: usize,
    /// Experts of a layer; 0 or 1: none.
    pub experts: usize,
    /// Whether the embedding serves as output matrix.
    pub tied: bool,
    /// Whether it is known which columns are important.
    pub calibrated: bool,
}

impl Mix {
    /// The mix of this name, in any case; `Q4_K` is `Q4_K_M`, and so on.
    pub fn parse(name: &str) -> Option<Mix> {
        let upper = name.to_ascii_uppercase();
        let whole = match upper.as_str() {
            "Q3_K" | "Q4_K" | "Q5_K" => upper + "_M",
            "MXFP4" => "MXFP4_MOE".to_owned(),
            _ => upper,
        };
        MIXES.into_iter().find(|mix| mix.name == whole)
    }

    /// All of them, finest first.
    pub fn all() -> impl Iterator<Item = Mix> {
        MIXES.into_iter()
    }

    /// Whether what comes out is of use only if it is known which columns are important, as llama.cpp has it too.
    pub fn wants_importance(self) -> bool {
        self.name == "Q2_K_S" || matches!(self.base, IQ3_XXS | IQ2_S | IQ2_XS | IQ2_XXS | IQ1_M | IQ1_S)
    }

    /// Whether most matrices get two bits or fewer by way of a grid.
    fn is_low(&self) -> bool {
        matches!(self.base, IQ2_S | IQ2_XS | IQ2_XXS | IQ1_M | IQ1_S)
    }

    /// The type of a tensor by its GGUF name and shape, slowest dimension first.
    ///
    /// Vectors and routers stay F32. Rows that are no whole blocks of a type get one of 32 values that is no coarser, or
    /// F16.
    pub fn kind(&self, name: &str, shape: &[usize], model: &ModelShape) -> BlockType {
        let columns = shape.last().copied().unwrap_or(1);
        if shape.len() < 2
            || !name.ends_with(".weight")
            || name.contains("ffn_gate_inp")
            || name.contains("norm")
        {
            return F32;
        }
        if self.name == "MXFP4_MOE" && name.contains("_exps") {
            return fitting(MXFP4, columns);
        }
        if self.base.block_len() == 1 {
            return self.base;
        }
        fitting(self.preferred(name, columns, model), columns)
    }

    fn preferred(&self, name: &str, columns: usize, model: &ModelShape) -> BlockType {
        if name == "output.weight" || model.tied && name == "token_embd.weight" {
            return match self.base {
                base if base == Q8_0 || !columns.is_multiple_of(base.block_len()) => Q8_0,
                IQ3_XXS => Q5_K,
                _ if self.is_low() => Q5_K,
                _ => Q6_K,
            };
        }
        let Some((layer, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            return match self.base {
                TQ1_0 | TQ2_0 => Q4_K,
                IQ3_XXS => IQ3_S,
                _ if matches!(self.name, "IQ2_S" | "IQ2_M") => IQ3_S,
                _ if self.is_low() => Q2_K,
                base => base,
            };
        };
        let layer: usize = layer.parse().unwrap_or(0);
        let part = part.trim_end_matches(".weight").trim_end_matches("_exps").trim_end_matches("_shexp");
        // the matrices that values are a part of count as those of values
        let part = if matches!(part, "attn_qkv" | "attn_kv_b") { "attn_v" } else { part };
        let special = if self.is_low() {
            self.of_part_low(part, layer, model)
        } else {
            self.of_part(part, layer, model)
        };
        match special.unwrap_or(self.base) {
            // of 70B values are an eighth as wide as queries, so that more bits of them cost next to nothing
            Q3_K | Q4_K if part == "attn_v" && !self.is_low() && model.layers == 80 && model.group > 1 => {
                Q5_K
            }
            kind => kind,
        }
    }

    /// What a mix of two bits or fewer says of a part of a layer.
    fn of_part_low(&self, part: &str, layer: usize, model: &ModelShape) -> Option<BlockType> {
        let finer = if matches!(self.name, "IQ2_S" | "IQ2_M") { IQ3_S } else { Q2_K };
        match part {
            "attn_v" => Some(if model.group >= 4 || model.experts >= 4 { Q4_K } else { finer }),
            "attn_k" if model.experts == 8 => Some(Q4_K),
            "ffn_down" if layer < model.layers / 8 => Some(finer),
            "attn_output" if model.experts == 8 => Some(Q5_K),
            "attn_output" if matches!(self.base, IQ1_M | IQ1_S) => Some(IQ2_XXS),
            "attn_output" if finer == IQ3_S => Some(IQ3_S),
            _ => None,
        }
    }

    /// What a mix says of a part of a layer.
    fn of_part(&self, part: &str, layer: usize, model: &ModelShape) -> Option<BlockType> {
        let ModelShape { layers, group, experts, calibrated, .. } = *model;
        let eighth = layers / 8;
        // the first eighth, the last, and every third between
        let more = layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
        let is_wide = group >= 4;
        match (part, self.name) {
            ("attn_v" | "attn_k", _) if experts == 8 => Some(Q8_0),
            ("attn_v", "Q2_K") => Some(if is_wide { Q4_K } else { Q3_K }),
            ("attn_v", "Q2_K_S" | "IQ3_XXS" | "IQ3_XS" | "IQ3_S") if is_wide => Some(Q4_K),
            ("attn_v", "IQ3_XXS") if !calibrated => Some(IQ3_S),
            ("attn_v", "IQ3_M") => Some(Q4_K),
            ("attn_v", "Q3_K_M") => Some(if layer < 2 { Q5_K } else { Q4_K }),
            ("attn_v", "Q3_K_L") => Some(Q5_K),
            ("attn_v", "IQ4_NL" | "IQ4_XS") if is_wide => Some(Q5_K),
            ("attn_v", "Q4_K_M" | "Q5_K_M") if more => Some(Q6_K),
            ("attn_v", "Q4_K_S") if layer < 4 => Some(Q5_K),
            ("attn_q" | "attn_k", "IQ3_XS") => Some(IQ3_XXS),
            ("attn_q" | "attn_k", "IQ3_XXS") => Some(IQ2_S),
            ("ffn_gate" | "ffn_up", "IQ3_XS") if layer >= eighth && layer < 7 * layers / 8 => Some(IQ3_XXS),
            ("ffn_down", "Q2_K") => Some(Q3_K),
            ("ffn_down", "Q2_K_S" | "IQ3_M") if layer < eighth => Some(Q4_K),
            ("ffn_down", "IQ3_XXS") if !calibrated => Some(if layer < eighth { Q4_K } else { Q3_K }),
            ("ffn_down", "Q3_K_M") => Some(if layer < layers / 16 { Q5_K } else { Q4_K }),
            ("ffn_down", "Q3_K_L") => Some(Q5_K),
            ("ffn_down", "Q4_K_M" | "Q5_K_M") if more => Some(Q6_K),
            ("ffn_down", "Q4_K_S") if layer < eighth => Some(Q5_K),
            ("ffn_down", "IQ4_NL" | "IQ4_XS") if layer < eighth && !calibrated => Some(Q5_K),
            // what the first of them are multiplied with has values so far from the others that importance misleads
            ("ffn_down", "Q4_0") if layer < eighth && calibrated => Some(Q4_1),
            ("ffn_down", "Q5_0") if layer < eighth && calibrated => Some(Q5_1),
            ("attn_output", "Q4_K_S" | "Q4_K_M" | "IQ4_NL" | "IQ4_XS" | "Q3_K_S" | "Q3_K_M" | "Q2_K")
                if experts == 8 =>
            {
                Some(Q5_K)
            }
            ("attn_output", "IQ3_M" | "IQ3_S" | "IQ3_XS" | "IQ3_XXS") if experts == 8 => Some(Q5_K),
            ("attn_output", _) if experts == 8 => None,
            ("attn_output", "Q2_K") => Some(Q3_K),
            ("attn_output", "Q3_K_M" | "IQ3_M") => Some(Q4_K),
            ("attn_output", "Q3_K_L") => Some(Q5_K),
            ("attn_output", "IQ3_XXS") => Some(IQ3_S),
            _ => None,
        }
    }
}

/// The type, or one whose blocks fit rows of this length.
fn fitting(kind: BlockType, columns: usize) -> BlockType {
    let smaller = match kind {
        _ if columns.is_multiple_of(kind.block_len()) => return kind,
        Q2_K | Q3_K | IQ4_XS | TQ1_0 | TQ2_0 => IQ4_NL,
        IQ3_S | IQ3_XXS | IQ2_S | IQ2_XS | IQ2_XXS | IQ1_M | IQ1_S => IQ4_NL,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        _ => F16,
    };
    if columns.is_multiple_of(smaller.block_len()) { smaller } else { F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN: ModelShape = ModelShape { layers: 28, group: 6, experts: 0, tied: false, calibrated: false };

    fn kind(mix: &str, name: &str, columns: usize) -> BlockType {
        Mix::parse(mix).unwrap().kind(name, &[16, columns], &QWEN)
    }

    #[test]
    fn names_are_known_in_any_case_and_without_their_size() {
        assert_eq!(Mix::parse("q4_k_m").unwrap().file_type, 15);
        assert_eq!(Mix::parse("q4_k").unwrap().name, "Q4_K_M");
        assert_eq!(Mix::parse("q9"), None);
    }

    #[test]
    fn the_m_mixes_give_some_layers_more() {
        let down = |layer: usize| kind("Q4_K_M", &format!("blk.{layer}.ffn_down.weight"), 8960);
        let finer = (0..28).filter(|&layer| down(layer) == Q6_K).count();
        assert_eq!((down(0), down(3), down(5), down(27), finer), (Q6_K, Q4_K, Q6_K, Q6_K, 14));
        assert_eq!(kind("Q4_K_M", "blk.3.attn_q.weight", 1536), Q4_K);
        assert_eq!(kind("Q4_K_M", "output.weight", 1536), Q6_K);
        assert_eq!(kind("Q4_K_M", "token_embd.weight", 1536), Q4_K);
    }

    #[test]
    fn the_lowest_mixes_give_more_to_what_suffers_most() {
        let of = |mix: &str, part: &str, layer: usize| kind(mix, &format!("blk.{layer}.{part}.weight"), 1536);
        assert_eq!(of("IQ2_XXS", "attn_q", 9), IQ2_XXS);
        assert_eq!(of("IQ2_XXS", "attn_v", 9), Q4_K);
        assert_eq!((of("IQ2_M", "ffn_down", 2), of("IQ2_M", "ffn_down", 3)), (IQ3_S, IQ2_S));
        assert_eq!(of("IQ1_S", "attn_output", 9), IQ2_XXS);
        assert_eq!(kind("IQ1_S", "output.weight", 1536), Q5_K);
        assert_eq!(kind("IQ1_S", "token_embd.weight", 1536), Q2_K);
        assert_eq!((of("IQ3_XXS", "attn_k", 9), of("IQ3_XXS", "ffn_down", 9)), (IQ2_S, Q3_K));
        let wanting: Vec<&str> =
            MIXES.iter().filter(|mix| mix.wants_importance()).map(|mix| mix.name).collect();
        assert_eq!(wanting, ["IQ3_XXS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"]);
    }

    #[test]
    fn values_of_70b_get_five_bits_where_others_get_three_or_four() {
        let model = ModelShape { layers: 80, group: 8, ..QWEN };
        let of = |mix: &str, layer: usize, model: &ModelShape| {
            Mix::parse(mix).unwrap().kind(&format!("blk.{layer}.attn_v.weight"), &[16, 1024], model)
        };
        for mix in ["Q4_K_M", "Q4_K_S", "Q3_K_M", "Q3_K_S", "Q2_K", "IQ3_M"] {
            assert_eq!(of(mix, 11, &model), Q5_K, "{mix}");
        }
        assert_eq!((of("Q4_K_M", 0, &model), of("Q5_K_S", 11, &model)), (Q6_K, Q5_K));
        assert_eq!((of("IQ2_XS", 11, &model), of("Q4_0", 11, &model)), (Q4_K, Q4_0));
        let each_its_own = ModelShape { group: 1, ..model };
        assert_eq!((of("Q4_K_M", 11, &each_its_own), of("Q4_K_M", 4, &QWEN)), (Q4_K, Q4_K));
    }

    #[test]
    fn importance_changes_what_the_first_layers_get() {
        let known = ModelShape { calibrated: true, ..QWEN };
        let down =
            |mix: &str, shape| Mix::parse(mix).unwrap().kind("blk.0.ffn_down.weight", &[8, 8960], shape);
        assert_eq!((down("IQ4_XS", &QWEN), down("IQ4_XS", &known)), (Q5_K, IQ4_XS));
        assert_eq!((down("Q4_0", &QWEN), down("Q4_0", &known)), (Q4_0, Q4_1));
    }

    #[test]
    fn a_tied_embedding_is_as_fine_as_an_output_matrix() {
        let mix = Mix::parse("Q4_K_M").unwrap();
        let tied = ModelShape { tied: true, ..QWEN };
        assert_eq!(mix.kind("token_embd.weight", &[100, 1536], &tied), Q6_K);
    }

    #[test]
    fn matrices_that_hold_values_count_as_those_of_values_and_experts_may_be_mxfp4() {
        assert_eq!(kind("Q4_K_M", "blk.0.attn_qkv.weight", 1536), Q6_K);
        assert_eq!(kind("Q4_K_M", "blk.0.ffn_down_shexp.weight", 1536), Q6_K);
        assert_eq!(kind("mxfp4", "blk.0.ffn_down_exps.weight", 1536), MXFP4);
        assert_eq!(kind("mxfp4", "blk.0.attn_q.weight", 1536), Q8_0);
    }

    #[test]
    fn rows_that_are_no_whole_blocks_get_another_type() {
        assert_eq!(kind("Q4_K_M", "blk.3.attn_q.weight", 896), Q5_0);
        assert_eq!(kind("Q4_K_M", "output.weight", 896), Q8_0);
        assert_eq!(kind("Q2_K", "blk.3.attn_q.weight", 896), IQ4_NL);
        assert_eq!(kind("Q8_0", "blk.3.attn_q.weight", 100), F16);
    }

    #[test]
    fn vectors_norms_and_routers_stay_as_they_are() {
        let mix = Mix::parse("Q8_0").unwrap();
        assert_eq!(mix.kind("blk.0.attn_q.bias", &[1536], &QWEN), F32);
        assert_eq!(mix.kind("blk.0.ffn_gate_inp.weight", &[8, 1536], &QWEN), F32);
    }
}
