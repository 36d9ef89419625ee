// Every metric: name, title, unit, digits, +1 where more is better and -1 where less is.
const METRIC_GROUPS = [
  ["What is said", [
    ["val_asr_bleu", "ASR-BLEU", "", 1, 1],
    ["shuffled_asr_bleu", "its floor: against another dialogue's answers", "", 1, 0],
    ["ceiling_asr_bleu", "its ceiling: the reference speech through the codec", "", 1, 0],
    ["val_asr_wer", "WER against the reference", "%", 1, -1],
    ["val_asr_cer", "CER against the reference", "%", 1, -1],
    ["val_said_wer", "WER against its own text", "%", 1, -1],
    ["val_said_cer", "CER against its own text", "%", 1, -1],
    ["val_answer_accuracy", "Answers right in its speech", "%", 1, 1],
    ["ceiling_answer_accuracy", "their ceiling: the reference speech through the codec", "%", 1, 0],
    ["val_empty_rate", "Empty turns", "%", 1, -1],
    ["val_quality", "Quality", "", 2, 1],
    ["val_speaker_similarity", "Speaker similarity", "", 2, 1],
  ]],
  ["What is written", [
    ["val_txt_bleu", "Text BLEU", "", 1, 1],
    ["val_answer_accuracy_text", "Answers right in its text", "%", 1, 1],
    ["val_token_accuracy", "Tokens right, without padding", "%", 1, 1],
    ["val_token_perplexity", "Perplexity, without padding", "", 2, -1],
    ["val_text_accuracy", "Tokens right, all frames", "%", 1, 1],
    ["val_text_perplexity", "Perplexity, all frames", "", 3, -1],
  ]],
  ["Turn-taking", [
    ["val_latency_s_median", "Latency, median", "s", 2, 0],
    ["ref_latency_s_median", "of the reference", "s", 2, 0],
    ["val_latency_s_mean", "Latency, mean", "s", 2, 0],
    ["val_latency_s_p10", "Latency, 10th percentile", "s", 2, 0],
    ["val_latency_s_p90", "Latency, 90th percentile", "s", 2, 0],
    ["val_missed_turns", "Missed turns", "%", 1, -1],
    ["val_talk_over", "Talks over the user", "%", 1, -1],
    ["val_barge_ins", "Barge-ins", "", 0, 0],
    ["val_barge_in_success", "Barge-ins it yields to", "%", 1, 1],
    ["val_barge_in_stop_s_median", "Time to yield, median", "s", 2, -1],
    ["val_false_stops", "False stops", "%", 1, -1],
  ]],
  ["Codes and losses", [
    ["val_code_accuracy", "Audio codes right", "%", 1, 1],
    ["val_code_perplexity", "Perplexity of audio codes", "", 2, -1],
    ["val_loss", "Loss", "", 3, -1],
    ["val_text_loss", "Text loss", "", 3, -1],
    ["val_audio_loss", "Audio loss", "", 3, -1],
  ]],
];
// the tiles and the columns that are seen at once
const TILES = ["val_asr_bleu", "val_txt_bleu", "val_answer_accuracy", "val_asr_wer", "val_latency_s_median",
  "val_missed_turns", "val_barge_in_success", "val_quality", "val_speaker_similarity", "val_loss"];
const SHORT = {
  val_asr_wer: "WER", val_answer_accuracy: "Answers right", val_latency_s_median: "Latency",
  val_missed_turns: "Missed turns", val_barge_in_success: "Yields", val_speaker_similarity: "Similarity",
};
const METRICS = new Map(METRIC_GROUPS.flatMap(([, specs]) => specs)
  .map(([name, title, unit, digits, better]) => [name, { name, title, unit, digits, better, short: SHORT[name] || title }]));

const has = (name) => data.validations.length && [name, ...data.datasets.map((ds) => `${name}_${ds}`)]
  .some((full) => isNumber(data.metrics[full]));
// over all data sets; runs of older versions have some metrics of data sets only, which is the same where there is one
function overall(metrics, name) {
  if (isNumber(metrics[name])) return metrics[name];
  return data.datasets.length === 1 ? metrics[`${name}_${data.datasets[0]}`] : undefined;
}
function shown(metric, value) {
  if (!isNumber(value)) return "–";
  return metric.unit ? `${fixed(value, metric.digits)} ${metric.unit}` : fixed(value, metric.digits);
}
