"""Evaluates a trained model.

python run_eval.py --model_name_or_path M --test_file test.json --audio_dir AUDIO --output_dir OUT
"""

from audiolm.evaluation.evaluate import main

if __name__ == "__main__":
    main()
