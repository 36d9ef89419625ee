"""Who talks: the demo's engines in more voices, some of which training never hears."""

from s2s_data.demo.voices import Voice

PITCHES = (0.75, 0.9, 1.0, 1.15, 1.3)
SPEEDS = (0.92, 1.0, 1.08)


def _pico() -> list[Voice]:
    return [
        Voice(f"pico-{speaker}-{pitch}-{speed}", "pico", speaker, pitch, speed)
        for speaker in ("en-US", "en-GB")
        for pitch in PITCHES
        for speed in SPEEDS
    ]


def _flite() -> list[Voice]:
    return [Voice(f"{name}-{speed}", "flite", name, speed=speed) for name in ("rms", "kal16") for speed in SPEEDS]


USER_VOICES = (*_pico(), *_flite())
HELDOUT_VOICES = tuple(Voice(f"awb-{speed}", "flite", "awb", speed=speed) for speed in SPEEDS)
