"""Speaker fine-tuning: a voice, or several, from a few minutes each.

Command   python train.py --config configs/finetune.py:size=0.6B \\
              --config.model.source=CHECKPOINT --config.data.corpus=CORPUS --workdir=RUN
          the same with --export VOICE, then infer.py --model VOICE --speaker NAME
          mode=lora trains adapters (rank 16) instead of all weights.
Hardware  0.6B: one GPU of 24 GB, or 16 GB with mode=lora; 1.7B: 48 GB, 24 GB with
          mode=lora.  Derived from 16 bytes a trained parameter, not measured.
Time      not measured on a GPU; size=tiny: under a minute on two CPU cores.
Metric    at step 0 on released weights each codebook must stand below ln 2048 = 7.62
          nats (else codec and checkpoint do not belong together).

Every number is ours; the official script's faults (labels one frame late, predictor
labels one codebook late, a hidden state that has seen its frame, bfloat16 weights, one
speaker) are not repeated.  The text embedding is frozen: in the released CustomVoice
weights it has moved by 0.005 % from Base.
"""

from configs import base

TEXT_EMBEDDING = r"^talker\.text_embedding\."
SPEAKER_ENCODER = r"^speaker_encoder\."


def get_config(text: str = ""):
    """text: "size=0.6B|1.7B|tiny,mode=full|lora"."""
    chosen = base.parse(text, size=("0.6B", "1.7B", "tiny"), mode=("full", "lora"))
    config = base.get_config()
    config.name, config.model.size = "finetune", chosen["size"]
    config.model.update(start="weights", export_speakers=True)
    config.length, config.rows = 2048, 8
    config.data.update(
        voice_from="mel",
        reference=0.0,
        drop_language=0.3,  # people leave the language out when they speak with a voice
        rounds=8,  # few utterances, seen often: each in several layouts
        workers=2,
    )
    config.optimizer.update(
        steps=500,
        peak=1e-5,
        warmup=50,
        weight_decay=0.0,
        ema=0.99,
        freeze=(TEXT_EMBEDDING, SPEAKER_ENCODER),
    )
    config.update(log_every=10, save_every=100, keep_best=1)
    if chosen["mode"] == "lora":
        config.lora.rank = 16
        config.optimizer.update(peak=1e-4, freeze=())
    if chosen["size"] == "tiny":
        config.update(length=512, rows=4, log_every=5, save_every=20)
        config.optimizer.update(steps=40, peak=1e-3, warmup=4)
        config.compute.update(dtype="float32", remat="none")
        config.loss.predictor_fraction = 1 / 8
        config.data.workers = 0
    return config
