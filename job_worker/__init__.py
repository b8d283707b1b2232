from . import delay, exception, job, models
