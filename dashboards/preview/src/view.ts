// What the driver hands over: one dashboard with the answers to its queries.
export interface Answer {
  refId: string;
  legendFormat: string;
  table: boolean;
  step: number;
  series: Array<{ labels: Record<string, string>; points: Array<[number, string]> }>;
}

export interface Panel {
  id: number;
  type: string;
  title?: string;
  description?: string;
  transparent?: boolean;
  gridPos: { x: number; y: number; w: number; h: number };
  options: any;
  fieldConfig: any;
  transformations?: any[];
}

export interface View {
  title: string;
  theme: 'dark' | 'light';
  width: number;
  begin: number;
  end: number;
  variables: Array<{ label: string; name: string; text: string }>;
  links: string[];
  caption: string;
  panels: Panel[];
  answers: Record<number, Answer[]>;
}
