// Prometheus' answers as Grafana's data source hands them to a panel.
import {
  applyNullInsertThreshold,
  createDataFrame,
  DataFrame,
  FieldType,
  Labels,
  renderLegendFormat,
} from '@grafana/data';

import { Answer } from './view';

const AUTOMATIC = '__auto';

export function framesOf(answers: Answer[]): DataFrame[] {
  const tables = answers.filter((answer) => answer.table).length;
  return answers.flatMap((answer) =>
    answer.table ? [tableOf(answer, tables)] : answer.series.map((each) => seriesOf(answer, each)),
  );
}

function seriesOf(answer: Answer, each: Answer['series'][number]): DataFrame {
  const named = answer.legendFormat && answer.legendFormat !== AUTOMATIC;
  const legend = named ? renderLegendFormat(answer.legendFormat, each.labels) : undefined;
  const frame = createDataFrame({
    refId: answer.refId,
    fields: [
      { ...timesOf(each.points), config: { interval: answer.step * 1000 } },
      {
        name: 'Value',
        type: FieldType.number,
        labels: each.labels,
        config: { displayNameFromDS: legend },
        values: each.points.map(([, value]) => Number(value)),
      },
    ],
  });
  // Grafana's exported TimeSeries breaks lines at gaps in its first frame only
  return applyNullInsertThreshold({ frame });
}

function tableOf(answer: Answer, tables: number): DataFrame {
  const points = answer.series.flatMap((each) => each.points.slice(-1));
  const all = answer.series.map((each) => each.labels);
  const names = [...new Set(all.flatMap((labels: Labels) => Object.keys(labels)))].sort();
  return createDataFrame({
    refId: answer.refId,
    fields: [
      timesOf(points),
      ...names.map((name) => ({
        name,
        type: FieldType.string,
        values: all.map((labels) => labels[name] ?? ''),
      })),
      {
        name: tables > 1 ? `Value #${answer.refId}` : 'Value',
        type: FieldType.number,
        values: points.map(([, value]) => Number(value)),
      },
    ],
  });
}

function timesOf(points: Array<[number, string]>) {
  return { name: 'Time', type: FieldType.time, values: points.map(([time]) => time * 1000) };
}
